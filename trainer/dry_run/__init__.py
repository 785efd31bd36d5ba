"""What a run would be, without running it: memory, rows, headroom."""
