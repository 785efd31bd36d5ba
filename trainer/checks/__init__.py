"""What is wrong with a configuration, or has no effect, before anything is loaded."""
