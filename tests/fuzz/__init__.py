"""Random damage to every kind of file that people bring: `python -m tests.fuzz`."""
