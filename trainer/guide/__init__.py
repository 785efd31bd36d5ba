"""What the command says of itself: verbs, keys, and completion in a shell. Imports neither numpy nor torch."""
