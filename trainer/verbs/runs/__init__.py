"""The verbs that look at all runs under a folder: board and ls. Nothing here imports torch."""
