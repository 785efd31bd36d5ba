"""What the command line of some verbs takes."""
