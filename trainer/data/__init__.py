"""From files and hub data sets to batches of token ids."""
