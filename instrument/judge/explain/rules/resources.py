"""Memory and time: whether they grew, and what with: longer rows, evaluation, checkpoints, or nothing that is known.

An allocator takes blocks: its total rises in steps, ever rarer. A leak rises throughout: of PARTS equal parts
nearly every one is above the one before, and none takes most of the growth. A machine has pauses and moods: a
slow-down is one that its scatter does not explain (judge/course.py) and that is worth a name.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ....read.history import History
from ...course import blocks, judge, trend
from ...noise import noise_of
from ..finding import WINDOW, Finding, clock, median

# An allocator's blocks move a total by a percent or two; a tenth of a GiB is what a reader notices.
GREW, GREW_GIB = 0.04, 0.1
PARTS, RISING, MOST_IN_ONE, LATE = 8, 6, 0.4, 0.3
# Most of the growth came at such steps: the rest is the allocator's rounding.
MOSTLY = 0.6
# A trend of so many standard errors beside it: the share alone is reached by chance in one of 50 runs of 50 steps.
SLOWER, MUCH_SLOWER, SLOWED = 1.07, 1.3, 1.5
# A line through all steps scatters less than two thirds do: its ends by 0.08 sqrt(12 / 50) = 4% of 50 steps whose times
# scatter by 8%. What this costs in false verdicts is printed by python -m benchmarks.judging --part time.
LINE = 1.085
EVAL_SHARE, SAVE_SHARE = 0.2, 0.1
# What memory may have grown with: the column that rises then, and what is said.
MEMORY_GREW = {"eval_seconds_total": "explain.memory_eval", "save_seconds_total": "explain.memory_save"}
# Seconds. Nobody waits for a share of less.
SHORT = 60.0


def memory(history: History) -> Finding | None:
    """The memory of the GPU where there is one, else of the process, and what its growth came with."""
    column = next((c for c in ("memory_reserved_gib", "host_memory_gib") if history.steps[c].notna().any()), None)
    if column is None or len(history.steps) < 6:
        return None
    values = history.column(column)
    first, last = median(values[1:4]), float(values[-1])
    peak = int(np.nanargmax(values))
    facts: dict[str, Any] = {"first": first, "last": last, "peak": float(values[peak])}
    facts["where"] = "host" if column.startswith("host") else "GPU"
    facts["step"] = int(history.column("step")[peak])
    n = max(1, min(WINDOW, len(values) // 4))
    growth = float(np.nanmax([median(values[-n:]), median(values[len(values) // 2 :])])) - first
    if growth < max(GREW * first, GREW_GIB):
        return Finding("memory", "healthy", "explain.memory_flat", facts)
    rises = np.diff(values, prepend=values[0]).clip(min=0)
    rises[:2] = 0
    total = np.nansum(rises)
    length = history.column("max_sequence_length")
    records = length > np.maximum.accumulate(np.concatenate([[0], length[:-1]])) if np.isfinite(length).all() else None
    facts |= {"longest": float(np.nanmax(length)) if records is not None else 0.0}
    if records is not None and np.nansum(rises[records]) > MOSTLY * total:
        facts["step"] = int(history.column("step")[int(np.argmax(length))])
        return Finding("memory", "healthy", "explain.memory_lengths", facts)
    for name, key in MEMORY_GREW.items():
        spent = np.diff(history.column(name), prepend=0.0) > 0
        if np.nansum(rises[spent]) > MOSTLY * total:
            return Finding("memory", "note", key, facts)
    if _leaks(values):
        return Finding("memory", "watch", "explain.memory_grows", facts)
    settled = np.nanmax(values[: max(2, len(values) // 2)]) > facts["peak"] - max(GREW * first, GREW_GIB) / 2
    return Finding("memory", "note", "explain.memory_settled" if settled else "explain.memory_steps", facts)


def _leaks(values: np.ndarray) -> bool:
    """Whether it rises throughout."""
    if len(values) < 2 * PARTS:
        return False
    levels = np.array([median(part) for part in np.array_split(values[2:], PARTS)])
    rises = np.diff(levels)
    total = levels[-1] - levels[0]
    rising = int(np.sum(rises > 0.1 * total / len(rises)))
    late = levels[-1] - levels[PARTS // 2 - 1]
    return bool(total > 0 and rising >= RISING and rises.max() < MOST_IN_ONE * total and late > LATE * total)


def drift(history: History) -> Finding | None:
    """Whether steps became slower by more than their scatter, and whether longer rows explain it."""
    seconds, tokens = history.column("step_seconds"), history.column("tokens")
    if len(seconds) < 3 * WINDOW or not np.isfinite(seconds).all():
        return None
    third = len(seconds) // 3
    early, late = _level(seconds[2:third]), _level(seconds[-third:])
    facts = {"early": early, "late": late, "percent": 100 * (late / early - 1)}
    if late < early / SLOWER:
        return Finding("time", "healthy", "explain.time_faster", facts)
    if (late < SLOWER * early and _line(seconds[2:]) < LINE) or not _slowed(seconds[2:]):
        return Finding("time", "healthy", "explain.time_steady", facts)
    verdict = "watch" if late > MUCH_SLOWER * early else "note"
    if not np.isfinite(tokens).all():
        return Finding("time", verdict, "explain.time_slower_seconds", facts)
    rates = _level(tokens[2:third] / seconds[2:third]), _level(tokens[-third:] / seconds[-third:])
    facts |= {"tokens_early": median(tokens[2:third]), "tokens_late": median(tokens[-third:])}
    if facts["tokens_late"] > facts["tokens_early"] and rates[1] > rates[0] / SLOWER**0.5:
        return Finding("time", "healthy", "explain.time_lengths", facts)
    on_gpu = bool(history.steps["memory_reserved_gib"].notna().any())
    key = "explain.time_slower" if on_gpu else "explain.time_slower_cpu"
    return Finding("time", verdict, key, facts | {"rate_early": rates[0], "rate_late": rates[1]})


def _level(values: np.ndarray) -> float:
    """Their mean, outliers cut off: a median of so few scatters by a quarter more."""
    return float(blocks(values, 1)[0][0])


def _line(seconds: np.ndarray) -> float:
    """By what factor a line through their logarithms rises from end to end, outliers cut off."""
    logs = np.log(np.maximum(seconds, 1e-9))
    middle = np.median(logs)
    reach = 3 * 1.4826 * np.median(np.abs(logs - middle))
    t = np.linspace(-0.5, 0.5, len(logs))
    return float(np.exp(t @ np.clip(logs - middle, -reach, reach) / (t @ t)))


def _slowed(seconds: np.ndarray) -> bool:
    """In a step, or all along."""
    if judge(seconds).kind == "rose":
        return True
    means, _ = blocks(seconds)
    return trend(-means, noise_of(means)) > SLOWED


def shares(history: History) -> Finding | None:
    """Where the time went: steps, evaluation, checkpoints. An ETA from steps alone misses the other two."""
    seconds = history.column("step_seconds")
    if not np.isfinite(seconds).any():
        return None
    stepping, evaluating, saving = history.spent()
    total = max(stepping + evaluating + saving, 1e-9)
    facts = {"steps": clock(stepping), "eval": clock(evaluating), "save": clock(saving), "total": clock(total)}
    facts |= {"eval_percent": 100 * evaluating / total, "save_percent": 100 * saving / total, "n": len(history.evals)}
    if total < SHORT:
        return Finding("time", "healthy", "explain.time_shares", facts)
    if evaluating > EVAL_SHARE * total:
        return Finding("time", "watch", "explain.time_eval", facts)
    if saving > SAVE_SHARE * total:
        return Finding("time", "watch", "explain.time_save", facts)
    return Finding("time", "healthy", "explain.time_shares", facts)


def stock_evaluation(history: History) -> Finding | None:
    """A stock state has no step times; its evaluations' are there."""
    if not history.stock or "eval_runtime" not in history.evals or np.isfinite(history.column("step_seconds")).any():
        return None
    seconds = history.evals["eval_runtime"].astype("float64")
    return Finding("time", "note", "explain.time_eval_stock", {"n": len(seconds), "time": clock(float(seconds.sum()))})


RULES = (memory, drift, shares, stock_evaluation)
