"""A run from its configuration to the final adapter: folder, resuming, the end."""
