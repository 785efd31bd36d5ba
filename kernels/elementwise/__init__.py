"""The frozen model's norms, activations and rotation."""
