"""Records statistics while a step runs. Needs torch."""
