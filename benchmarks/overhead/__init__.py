"""What a step costs here and in the stock Trainer: `python -m benchmarks.overhead [WORK ... | growth]`.

work.py        the works, their bars, and the configuration that every contender reads
rows.py        their rows, the same for every contender      models.py    their models
contender.py   one contender in a process of its own, a step at a time
stock.py       the stock Trainer      watchers.py  what people hang on it today      rivals.py  other fast trainers
floor.py       the matrix products alone
meter.py       what is measured in a step: time, or what it did (profile.py: where its time went)
turns.py       takes turns between the contenders
summary.py     percentiles, ratios and bars      table.py  prints and writes them      picture.py  draws them
growth.py      how time and memory grow with tokens, rank and batch
load.py        who else used the machine meanwhile
"""
