"""Rows with labels: what a label is, reading it, and what is said of the classes before a run."""
