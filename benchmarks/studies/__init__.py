"""How often `lora-train advise` is right about studies whose truth is known, and how often wrong.

    python -m benchmarks.studies [--kind NAME] [--seeds N] [--quick]

Each kind of study (kinds.py) is drawn with an effect of 3 seed standard deviations, as its healthy twin, and with an
effect of half of one, below which nothing may be claimed. For each the rule that the kind is about is right where it
says the expected sentence, wrong where its verdict is any other but "not answered". Bars: right in 19 of 20 studies,
wrong in at most one of 20; with half an effect "not answered" in 19 of 20. Exit code 1 if a cell falls short.
"""
