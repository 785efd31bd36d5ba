"""Products with a frozen weight, 16-bit or NF4."""
