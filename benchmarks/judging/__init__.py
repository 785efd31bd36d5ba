"""How often a judgement of `explain` is wrong where nothing happens, and right where something does.

    python -m benchmarks.judging                     every cell, 200 seeds each: ten minutes on two cores
    python -m benchmarks.judging --quick             a part with few seeds, under a minute
    python -m benchmarks.judging --part eval --all   one part, every cell printed and not the worst alone
    python -m benchmarks.judging --critical          the table CRITICAL of instrument/judge/noise.py, drawn anew

draw.py makes noise and series, cells.py what is asked of them, __main__.py counts and prints. Each history is made in
memory and given to the real `explain`, so a rate is one of sentences that a user reads.
"""
