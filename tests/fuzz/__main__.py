"""Damages files of every kind that people bring and reads them: a traceback, a hang or exit 1 is a failure.

    python -m tests.fuzz [--seconds 120] [--target NAME] [--seed N] [--keep FOLDER]   counts by reader; 1 if any failed
    python -m tests.fuzz --target NAME --input N --seed N                             one input again, its traceback

Each input follows from the seed, its target and its number alone. A target runs in a process of its own, so that a
crash of the interpreter is a failure of that input as well. Every reader gets the same time.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .run import Fault, read_one, work
from .targets import TARGETS

SECONDS = 120.0
SHOWN = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the counts.

    Returns:
        0 if every input was read or refused in words, else 1.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"of computing, in all ({SECONDS:.0f})")
    parser.add_argument("--target", choices=TARGETS, action="append", help="only this one; may be given again")
    parser.add_argument("--seed", type=int, default=None, help="default: another one every time, printed")
    parser.add_argument("--input", type=int, help="this input of the target alone")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="leave the files of the failures there")
    parser.add_argument("--first", action="store_true", help="each target ends with its first failure")
    parser.add_argument("--workers", type=int, default=2, help="processes at a time (2)")
    options = parser.parse_args(arguments)
    names = options.target or list(TARGETS)
    seed = int(time.time()) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    if options.input is not None:
        with tempfile.TemporaryDirectory() as folder:
            return _again(names[0], seed, options.input, Path(folder), options.keep)
    faults, total, began = [], 0, time.perf_counter()
    share = options.seconds * min(options.workers, len(names)) / len(names)
    for name, count, found in _all(names, seed, share, options):
        total += count
        faults += found
        print(f"{name:<12} {count:>8,} inputs   {len(found)} failures", flush=True)
        for fault in found[:SHOWN]:
            print(f"    {fault}", flush=True)
    hours = (time.perf_counter() - began) / 3600
    print(f"{total:,} inputs, {total / hours:,.0f} an hour: {len(faults)} failures")
    return 1 if faults else 0


def _again(name: str, seed: int, number: int, folder: Path, keep: Path | None) -> int:
    target = TARGETS[name](folder)
    fault = read_one(target, folder, seed, number, raises=True)
    if keep is not None:
        shutil.copytree(target.folder, keep, dirs_exist_ok=True)
    print(fault or "read or refused in words")
    return 1 if fault else 0


def _all(names: Sequence[str], seed: int, seconds: float, options: Any) -> Any:
    """(target, inputs, failures) of each, as they end."""
    context = multiprocessing.get_context("spawn")
    waiting, running = list(names), []
    while waiting or running:
        while waiting and len(running) < options.workers:
            name, count, queue = waiting.pop(0), context.Value("q", 0), context.SimpleQueue()
            process = context.Process(target=work, args=(name, seed, seconds, options, count, queue))
            process.start()
            running.append((name, count, queue, process))
        for one in list(running):
            name, count, queue, process = one
            process.join(0.2)
            if process.exitcode is None:
                continue
            running.remove(one)
            found = []
            while not queue.empty():
                found.append(queue.get())
            if process.exitcode != 0:
                found.append(Fault(name, count.value, "", f"the process ended with {process.exitcode}"))
            yield name, count.value, found


if __name__ == "__main__":
    sys.exit(main())
