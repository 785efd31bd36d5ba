"""How good a classifier's answers are: scores of labels, values and entities, and the user's own function."""
