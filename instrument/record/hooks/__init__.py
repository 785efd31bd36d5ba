"""What is put on a model while it is recorded, and where its rows go."""
