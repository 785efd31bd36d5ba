"""Causal attention on the CPU, and of rows that lie one behind the other."""
