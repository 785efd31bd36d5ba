"""Configurations of other trainers, read and written as ours: nothing of theirs is imported or run."""
