"""A step beside the stock Trainer's: the works below by benchmarks/overhead, a process for each cell, in turns.

First random 1B LLaMA in fp16 and bf16, 2 x 256 and 2 x 1024 tokens, stock, plain and instrumented: twelve cells. Then
more, until the time is up; what could not begin is printed as not run. The processes of a group load side by side, and
only one computes at a time.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from statistics import median

from ...overhead.measure.turns import Process, Taken, start, take_turns
from ...overhead.models import prepare
from ...overhead.rivals import installed
from ...overhead.work import CORE, Work
from ..context import Context

LENGTHS = (256, 1024)
STEPS, WARM_UP = 12, 4
# a group begins only if this much time is left, or as much as the last one took
LEAST_SECONDS = 30.0


def groups(dry: bool) -> list[list[Work]]:
    """Works whose processes fit onto the card together, and share a model."""
    bare = Work("", 2, 0, model="llama-1b", steps=STEPS, warm_up=WARM_UP, contenders=CORE)
    watched = ("items", "liger", *(name for name in installed() if name == "unsloth"))
    found = [
        [replace(bare, name=f"llama-fp16-{n}", length=n, fp16=True) for n in LENGTHS],
        [replace(bare, name=f"llama-bf16-{n}", length=n, bf16=True) for n in LENGTHS],
        [replace(bare, name=f"llama-nf4-{n}", length=n, fp16=True, nf4=True) for n in LENGTHS],
        [replace(bare, name=f"neox-fp16-{n}", length=n, model="neox-1b", fp16=True) for n in LENGTHS],
        [replace(bare, name="llama-fp16-1024-watched", length=1024, fp16=True, contenders=("stock", *watched))],
    ]
    if dry:
        short = [found[1][:1], found[4]]
        tiny = {"model": "tiny", "length": 16, "steps": 1, "warm_up": 1}
        return [[replace(work, **tiny) for work in works] for works in short]
    return found


def run(context: Context) -> str:
    """Measures group by group."""
    lasted, done, cells = LEAST_SECONDS if not context.dry else 1.0, 0, 0
    for works in groups(context.dry):
        cells += sum(len(work.contenders) for work in works)
        if context.seconds_left < lasted:
            for work in works:
                context.line(f"{work.name:<24} not run: the time was up")
            continue
        started = time.monotonic()
        done += group(context, works)
        lasted = max(lasted, time.monotonic() - started)
    context.number(cells=done)
    return f"{done} of {cells} cells, ms a step (of the stock Trainer's; peak GiB, waits)"


def group(context: Context, works: list[Work]) -> int:
    """Loads the contenders of all works at once, then measures work after work. Returns the number of cells."""
    loaded: list[tuple[Work, dict[str, Process]]] = []
    done = 0
    first = works[0]
    model = context.work / f"overhead-{first.model}-{'fp16' if first.fp16 else 'bf16'}"
    if not model.exists():
        prepare(first, model)
    try:
        for work in works:
            folder: Path = context.folder / work.name
            folder.mkdir()
            quota = dict.fromkeys(work.contenders, work.steps)
            loaded.append((work, dict(start(work, work.contenders, quota, model, folder))))
        for work, running in loaded:
            names = [name for name in running if ready(context, work, name, running[name])]
            others = [name for name in names if name not in CORE]
            quota = dict.fromkeys(names, work.steps)
            taken = take_turns(work, {name: running[name] for name in names}, quota, may_die=others)
            for name in set(others) - taken.keys():
                context.line(f"{work.name:<24} {name} died; its last words are in the log")
            tell(context, work, taken)
            done += len(taken)
    finally:
        for _, running in loaded:
            for process in running.values():
                process.kill()
    return done


def ready(context: Context, work: Work, name: str, process: Process) -> bool:
    """Waits until a contender is loaded. Only of ours and of the stock Trainer is it an error if it dies."""
    try:
        process.wait()
    except RuntimeError as error:
        print(error, flush=True)
        context.check(name not in CORE, f"{work.name}: {name} died")
        context.line(f"{work.name:<24} {name} could not be run: {str(error).splitlines()[-1][:80]}")
        return False
    return True


def tell(context: Context, work: Work, taken: dict[str, Taken]) -> None:
    """A line of a work: each contender's median step, beside the stock Trainer's."""
    steps = {name: 1e3 * median(step["wall"] for step in found.steps) for name, found in taken.items()}
    words = []
    for name, found in taken.items():
        ratio = f"{steps[name] / steps['stock']:.2f}x, " if name != "stock" and "stock" in steps else ""
        peak = max(step["peak_mib"] for step in found.steps) / 1024
        waits = found.counts["synchronisations"]
        words.append(f"{name} {steps[name]:.1f} ({ratio}{peak:.1f} GiB, {waits})")
        facts = {"ms": [1e3 * step["wall"] for step in found.steps], "peak_gib": peak, "waits": waits}
        context.number(**{f"{work.name} {name}": facts})
    context.line(f"{work.name:<24} {'; '.join(words)}")
