"""What a step costs here and in the stock Trainer: `python -m benchmarks.overhead`.

work.py        the batches, the same for every contender
contender.py   one contender in a process of its own, a step at a time
__main__.py    takes turns between them and prints the table
"""
