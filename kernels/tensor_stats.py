"""All statistics of any tensor in one pass."""
