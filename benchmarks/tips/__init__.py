"""How often each check before a run fires: on our examples, and on public configurations of other trainers.

    python -m benchmarks.tips [--read]

The public ones are those of tests/benchmarks/imports.jsonl, of which the values that decide a run were kept when their
files were read (benchmarks.imports); their rows and evaluations were not, so checks that need these are not asked.
--read prints every firing with its file. A tip that fires on most official recipes is worth little.
"""
