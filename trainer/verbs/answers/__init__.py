"""predict and evaluate: what a trained model says of the rows of a file, and how good that is."""
