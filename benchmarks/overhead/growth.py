"""How step time and peak memory grow with tokens, rank and batch: `python -m benchmarks.overhead growth`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .measure.turns import Taken, measure
from .show.summary import Row, rows_of
from .work import Work

CONTENDERS = ("stock", "instrumented")
N_STEPS = 3


@dataclass(frozen=True)
class Axis:
    """One thing that grows: its name, and the work at each of its values, smallest first."""

    name: str
    works: Mapping[int, Work]


@dataclass(frozen=True)
class GrowthRow:
    """One contender at one value.

    Attributes:
        wall_p50: seconds of a step.
        growth: over its own step at the axis' smallest value.
        ratio: over the stock Trainer's.
        peak_growth, peak_ratio: the same of its peak memory.
    """

    axis: str
    value: int
    contender: str
    wall_p50: float
    growth: float
    ratio: float
    peak_mib: float
    peak_growth: float
    peak_ratio: float


def axes(model: str = "smollm2") -> tuple[Axis, ...]:
    """128 to 2,048 tokens in one row, rank 4 to 64 at 2 x 256 tokens, 1 to 16 rows of 128 tokens."""

    def work(batch: int, length: int, r: int = 8) -> Work:
        return Work(f"{batch}x{length} r={r}", batch, length, r=r, model=model, warm_up=1)

    return (
        Axis("tokens", {n: work(1, n) for n in (128, 512, 2048)}),
        Axis("rank", {r: work(2, 256, r) for r in (4, 16, 64)}),
        Axis("batch", {b: work(b, 128) for b in (1, 4, 16)}),
    )


def measured(
    along: Sequence[Axis], n_steps: int = N_STEPS, show: Callable[[Sequence[GrowthRow]], None] | None = None
) -> list[GrowthRow]:
    """Measures every work once, though two axes may share it.

    Args:
        show: called with the rows of an axis as soon as they are there.
    """
    known: dict[Work, dict[str, Taken]] = {}
    rows: list[GrowthRow] = []
    for axis in along:
        found: dict[int, list[Row]] = {}
        for value, work in axis.works.items():
            if work not in known:
                known[work] = measure(work, CONTENDERS, dict.fromkeys(CONTENDERS, n_steps))
            found[value] = rows_of(work, known[work])
        new = growth_of(axis.name, found)
        rows += new
        if show is not None:
            show(new)
    return rows


def growth_of(axis: str, found: Mapping[int, Sequence[Row]]) -> list[GrowthRow]:
    """Each contender beside itself at the smallest value, and beside the stock Trainer."""
    first = {row.contender: row for row in found[min(found)]}
    return [
        GrowthRow(
            axis=axis,
            value=value,
            contender=row.contender,
            wall_p50=row.wall_p50,
            growth=row.wall_p50 / first[row.contender].wall_p50,
            ratio=row.ratio,
            peak_mib=row.peak_mib,
            peak_growth=row.peak_mib / first[row.contender].peak_mib,
            peak_ratio=row.peak_ratio,
        )
        for value, rows in found.items()
        for row in rows
    ]


def growth_table(rows: Sequence[GrowthRow]) -> str:
    """The rows of one axis."""
    lines = [
        f"{rows[0].axis:>7} {'contender':<13} {'p50 s':>8} {'grown':>7} {'ratio':>7} {'peak MiB':>9} {'grown':>7} "
        f"{'ratio':>7}"
    ]
    lines += [
        f"{row.value:>7,} {row.contender:<13} {row.wall_p50:>8.3f} {row.growth:>6.2f}x {row.ratio:>6.2f}x "
        f"{row.peak_mib:>9,.0f} {row.peak_growth:>6.2f}x {row.peak_ratio:>6.2f}x"
        for row in rows
    ]
    return "\n".join(lines)
