"""What is printed, and the CSV."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..measure.turns import PROFILED, Taken
from ..work import Work
from .summary import Row, ratios

HISTOGRAM_EVERY = 100  # the default of instrument.histogram_every and probe_every
NOTHING = "-"


def table(work: Work, rows: Sequence[Row]) -> str:
    """A title, and one line a contender."""
    head = (
        f"{'contender':<13} {'steps':>5} {'p20 s':>7} {'p50 s':>7} {'p80 s':>7} {'95% of p50':>13} {'CPU s':>7} "
        f"{'ratio':>7} {'95%':>12} {'tok/s':>7} {'peak MiB':>9} {'ratio':>6} {'syncs':>7} {'allocs':>8} "
        f"{'MiB':>8} {'loss':>8}"
    )
    lines = [f"{work.title}; ratios to {rows[0].base}", head]
    for row in rows:
        lines.append(
            f"{row.contender:<13} {row.n_steps:>5} {row.wall_p20:>7.3f} {row.wall_p50:>7.3f} {row.wall_p80:>7.3f} "
            f"{row.wall_low:>6.3f}-{row.wall_high:<6.3f} {row.cpu_p50:>7.2f} "
            f"{row.ratio:>6.2f}x {row.ratio_low:>5.2f}-{row.ratio_high:<6.2f} {shown(row.tokens_per_second, '.1f'):>7} "
            f"{row.peak_mib:>9,.0f} {row.peak_ratio:>5.2f}x {shown(row.synchronisations, ','):>7} "
            f"{shown(row.allocations, ','):>8} {shown(row.allocated_mib, ',.0f'):>8} {shown(row.loss, '.4f'):>8}"
        )
    return "\n".join(lines)


def shown(value: float | None, form: str) -> str:
    """A number, or a dash where there is none."""
    return NOTHING if value is None else format(value, form)


def remarks(taken: Mapping[str, Taken]) -> list[str]:
    """What the contenders tell beside each other: the floor, and what a hundredth of the heavy steps adds."""
    found = []
    if {"floor", PROFILED} <= taken.keys():
        floor = statistics.median(step["wall"] for step in taken["floor"].steps)
        above = statistics.median(ratios(taken, PROFILED, "floor"))
        found.append(f"floor: the matrix products alone take {floor:.3f} s; {PROFILED} takes {above:.2f}x that")
    if {"heavy", PROFILED} <= taken.keys():
        more = statistics.median(ratios(taken, "heavy", PROFILED)) - 1
        found.append(
            f"heavy: a step with exponent histograms and the probe takes {more:+.0%}; they come every "
            f"{HISTOGRAM_EVERY} steps, {more / HISTOGRAM_EVERY:+.2%} on average"
        )
    return found


def kinds_table(kinds: Mapping[str, float]) -> str:
    """Where the time of a profiled step went. The profiler itself makes the step longer."""
    total = sum(kinds.values())
    lines = [f"where a step of {PROFILED} goes, profiled: {total:.3f} s"]
    lines += [f"  {kind:<38} {seconds:>7.3f} s {seconds / total:>5.0%}" for kind, seconds in kinds.items()]
    return "\n".join(lines)


def write_csv(path: Path, rows: Sequence[Any]) -> None:
    """One line a row of a dataclass."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(asdict(rows[0])))
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
