"""The base model: loaded, made fast, and its loss."""
