"""The steps of records that do not print them.

Progress bars are read by console.py. What is left is told by the epochs, where steps an epoch are known:
step = epoch * steps_per_epoch, rounded to a multiple of the logging interval, for a printed epoch has few digits. Where
nothing tells, lines are counted, and History.numbered says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from .values import MOST_STEPS, Record, evaluation, is_step

# The Trainer prints epochs rounded to two decimals, since version 5 to four digits.
ROUNDED = 0.006
# train_steps_per_second has three decimals.
RATE_ROUNDED = 0.0005
# Logging intervals that people choose.
USUAL = {1, 2, 4, 5, 8, 10, 16, 20, 25, 30, 32, 40, 50, 64, 100, 200, 250, 400, 500, 1000, 2000, 5000}
MOST_TRIED = 2000
# So near a whole number two products lie by chance in one of four hundred logs, and ten never.
WHOLE = 0.025


def fill_steps(records: list[Record], per_epoch: tuple[float, float] | None, every: int | None = None) -> bool:
    """Gives every record a step, in place; whether they count optimizer steps.

    Args:
        per_epoch: steps an epoch, at least and at most; None where unknown.
        every: the logging interval, where it is known.
    """
    rows = [record for record in records if is_step(record)]
    numbered = all("step" in row for row in rows) or _from_epochs(rows, per_epoch) or _from_interval(rows, every)
    if not numbered:
        for line, row in enumerate(rows, 1):
            row["step"] = float(line)
    _fill_evaluations(records, rows, numbered)
    return numbered


def steps_per_epoch(records: Sequence[Record], steps: float | None, epochs: float | None) -> tuple[float, float] | None:
    """Steps an epoch, at least and at most.

    Args:
        steps, epochs: steps and epochs of the whole run, where they are known.
    """
    if steps and epochs:
        return steps / epochs, steps / epochs
    for record in records:
        runtime, rate = record.get("train_runtime"), record.get("train_steps_per_second")
        epoch = record.get("epoch")
        if runtime and rate and epoch and _positive(runtime) and _positive(rate) and _positive(epoch):
            return max(0.0, runtime * (rate - RATE_ROUNDED) / epoch), runtime * (rate + RATE_ROUNDED) / epoch
    return None


def _positive(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value) and value > 0


def _from_epochs(rows: list[Record], per_epoch: tuple[float, float] | None) -> bool:
    """Steps by multiples of one interval that fit every epoch; else, where steps an epoch are exact, rounded ones."""
    epochs = [row["epoch"] for row in rows if isinstance(row.get("epoch"), float) and math.isfinite(row["epoch"])]
    known = [(row["step"], row["epoch"]) for row in rows if row.get("epoch") and "step" in row]
    if len(known) >= 2 and known[-1][1] > known[0][1] and per_epoch is None:
        slope = (known[-1][0] - known[0][0]) / (known[-1][1] - known[0][1])
        per_epoch = (slope, slope)
    if per_epoch is None or len(epochs) < len(rows) or not epochs or not epochs[-1]:
        return False
    if any(b < a for a, b in pairwise(epochs)) or not 0 < per_epoch[1] * epochs[-1] < MOST_STEPS:
        return False
    steps = _exact(epochs, per_epoch) or _regular(epochs, per_epoch) or _each(epochs, per_epoch)
    for row, step in zip(rows, steps or (), strict=False):
        row["step"] = float(step)
    return steps is not None


def _exact(epochs: list[float], per_epoch: tuple[float, float]) -> list[int] | None:
    """Where epochs have all their digits, every product is a whole number."""
    low, high = per_epoch
    steps = [round(low * epoch) for epoch in epochs]
    whole = all(abs(low * epoch - step) < WHOLE for epoch, step in zip(epochs, steps, strict=True))
    return steps if low == high and whole and len(epochs) > 1 and len(set(steps)) == len(steps) else None


def _regular(epochs: list[float], per_epoch: tuple[float, float]) -> list[int] | None:
    """Multiples of one interval; with logging_first_step the first line stands before them."""
    low, high = per_epoch
    middle, last, n = (low + high) / 2, epochs[-1], len(epochs)
    slack = ROUNDED * high + 1 + (high - low) * last
    for ahead in (0, 1):
        if n <= ahead:
            continue
        errors = {}
        least, most = (per * (last + sign * ROUNDED) / (n - ahead) for per, sign in ((low, -1), (high, 1)))
        for every in range(max(1, math.ceil(least)), min(math.floor(most), math.ceil(least) + MOST_TRIED) + 1):
            steps = [1] * ahead + [every * i for i in range(1, n + 1 - ahead)]
            error = [abs(step - middle * epoch) for step, epoch in zip(steps, epochs, strict=True)]
            if max(error) <= slack:
                errors[every] = sum(error)
        usual = [every for every in errors if every in USUAL]
        if len(usual) == 1 or len(errors) == 1 or (errors and high - low < 1e-9):
            every = usual[0] if len(usual) == 1 else min(errors, key=lambda every: errors[every])
            return [1] * ahead + [every * i for i in range(1, n + 1 - ahead)]
    return None


def _each(epochs: list[float], per_epoch: tuple[float, float]) -> list[int] | None:
    """Every step for itself, where steps an epoch are known to a step over the run."""
    low, high = per_epoch
    steps = [round((low + high) / 2 * epoch) for epoch in epochs]
    return steps if (high - low) * epochs[-1] <= 1 and len(set(steps)) == len(steps) else None


def _from_interval(rows: list[Record], every: int | None) -> bool:
    if not every:
        return False
    for i, row in enumerate(rows, 1):
        row["step"] = float(every * i)
    return True


def _fill_evaluations(records: list[Record], rows: list[Record], numbered: bool) -> None:
    """An evaluation's step: that of its epoch, else of the line before it."""
    known = [(row["epoch"], row["step"]) for row in rows if isinstance(row.get("epoch"), float) and row["epoch"] > 0]
    last = 0.0
    for record in records:
        if is_step(record):
            last = record["step"]
        elif evaluation(record) and ("step" not in record or not numbered):
            record["step"] = _by_epoch(record.get("epoch"), known, last) if numbered else last


def _by_epoch(epoch: object, known: list[tuple[float, float]], last: float) -> float:
    """The step of an epoch that lies a little behind the last line's, or far from it."""
    if not isinstance(epoch, float) or not known or not math.isfinite(epoch):
        return last
    at, step = max(known, key=lambda pair: pair[1])
    slope = step / at
    exact = slope * epoch
    if not 0 <= exact < MOST_STEPS:
        return last
    return last if abs(exact - last) <= 2 * ROUNDED * slope + 0.5 else float(max(round(exact), 1))
