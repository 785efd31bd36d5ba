"""What a run is configured with: the sections and keys, and what a name in them means."""
