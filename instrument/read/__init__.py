"""A run on disk: writes it, reads it. Imports no torch."""
