"""Shows runs: pages, comparisons. Imports no torch."""
