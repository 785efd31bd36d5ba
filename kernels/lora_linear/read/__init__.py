"""The pass of backward over dY and X: every dB and G, and every dA, example by example."""
