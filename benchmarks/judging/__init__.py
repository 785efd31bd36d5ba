"""How often a judgement of `explain` is wrong where nothing happens, and right where something does.

    python -m benchmarks.judging                     every cell, 200 seeds each
    python -m benchmarks.judging --quick             a part with few seeds, under a minute
    python -m benchmarks.judging --part eval --short one part, printed only where it falls short
    python -m benchmarks.judging --critical          the tables CRITICAL of instrument/judge/course.py, drawn anew

draw.py makes noise and series, cells.py and kinds.py what is asked of them, bounds.py what the best test finds,
__main__.py counts and prints. Each history is made in memory and given to the real `explain`, so a rate is one of
sentences that a user reads.
"""
