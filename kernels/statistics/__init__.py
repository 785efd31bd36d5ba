"""Statistics of a tensor, exact and reproducible, alone or inside other kernels."""
