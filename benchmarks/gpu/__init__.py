"""Proves the GPU path on a bare machine with one command: `python -m benchmarks.gpu [--out DIR] [--dry] [PART...]`.

    parts.py     what is run, in which order, with how much time
    runner.py    a process for each part, its time limit, its log, its line in results.jsonl
    child.py     the other side of it; context.py is what a part is handed, and how it tells what it found
    wheels.py    what a machine without a network lacks, downloaded beforehand

__main__, parts, runner, child, context, machine, setup and wheels need nothing but the standard library.
"""
