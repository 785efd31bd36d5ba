"""Numbers that several rooms need. Imports nothing."""

FP16_MAX = 65504.0
"""The largest finite float16."""
MIB, GIB = 2**20, 2**30
