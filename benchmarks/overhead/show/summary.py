"""From steps to percentiles, ratios step by step on the same batch, and bars."""

from __future__ import annotations

import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..measure.turns import Taken
from ..work import CORE, Work

N_RESAMPLES = 2000
WITH_EXTENSION, WITHOUT_EXTENSION = 1.05, 1.15  # instrumented over plain, at most


@dataclass(frozen=True)
class Row:
    """One contender at one work, as the CSV has it.

    Attributes:
        wall_p20, wall_p50, wall_p80: seconds of a step.
        wall_low, wall_high: 95% interval of the median.
        cpu_p50: CPU seconds of a step, all threads.
        ratio, ratio_low, ratio_high: median over the steps of the time to that of the base contender's step on the
            same batch, and its 95% interval.
        peak_mib, peak_ratio: peak memory of the process.
        tokens_per_second: supervised tokens of all steps over their time.
        synchronisations, allocations, allocated_mib: of one step.
        loss: of the last timed step.
    """

    work: str
    contender: str
    device: str
    base: str
    n_steps: int
    wall_p20: float
    wall_p50: float
    wall_p80: float
    wall_low: float
    wall_high: float
    cpu_p50: float
    ratio: float
    ratio_low: float
    ratio_high: float
    peak_mib: float
    peak_ratio: float
    tokens_per_second: float | None
    synchronisations: int | None
    allocations: int | None
    allocated_mib: float | None
    loss: float | None


@dataclass(frozen=True)
class Bar:
    """Something that is aimed at, and what was reached."""

    what: str
    reached: float
    limit: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        return self.reached >= self.limit if self.at_least else self.reached <= self.limit

    def __str__(self) -> str:
        side = "at least" if self.at_least else "at most"
        return f"{'PASS' if self.met else 'SHORT'}  {self.what}: {self.reached:.2f}x, bar {side} {self.limit:.2f}x"


def rows_of(work: Work, taken: Mapping[str, Taken]) -> list[Row]:
    """One row a contender; ratios are to stock, or else to the first."""
    base = "stock" if "stock" in taken else next(iter(taken))
    return [row_of(work, contender, taken, base) for contender in taken]


def row_of(work: Work, contender: str, taken: Mapping[str, Taken], base: str = "stock") -> Row:
    """Percentiles, and ratios step by step."""
    own = taken[contender]
    walls = [step["wall"] for step in own.steps]
    ordered, (wall_low, wall_high) = sorted(walls), interval(walls)
    times = ratios(taken, contender, base)
    low, high = interval(times)
    peak, base_peak = own.steps[-1]["peak_mib"], taken[base].steps[-1]["peak_mib"]
    supervised = [step["supervised"] for step in own.steps]
    return Row(
        work=work.name,
        contender=contender,
        device=own.device,
        base=base,
        n_steps=len(walls),
        wall_p20=percentile(ordered, 0.2),
        wall_p50=statistics.median(ordered),
        wall_p80=percentile(ordered, 0.8),
        wall_low=wall_low,
        wall_high=wall_high,
        cpu_p50=statistics.median(step["cpu"] for step in own.steps),
        ratio=statistics.median(times),
        ratio_low=low,
        ratio_high=high,
        peak_mib=peak,
        peak_ratio=peak / base_peak,
        tokens_per_second=None if None in supervised else sum(supervised) / sum(walls),
        synchronisations=own.counts.get("synchronisations"),
        allocations=own.counts.get("allocations"),
        allocated_mib=own.counts.get("allocated_mib"),
        loss=own.steps[-1]["loss"],
    )


def ratios(taken: Mapping[str, Taken], over: str, under: str) -> list[float]:
    """Time of one contender over that of another, step by step on the same batch, as far as both went."""
    pairs = zip(taken[over].steps, taken[under].steps, strict=False)
    return [step["wall"] / base["wall"] for step, base in pairs]


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which that share lies."""
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95% of the medians of resampled values."""
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(N_RESAMPLES))
    return percentile(medians, 0.025), percentile(medians, 0.975)


def bars(work: Work, taken: Mapping[str, Taken], extension: bool) -> list[Bar]:
    """What is aimed at in this work, as far as its contenders were measured.

    Args:
        extension: whether `instrumented` had its statistics from the C extension.
    """
    found: list[Bar] = []

    def time(over: str, under: str, limit: float, words: str = "") -> None:
        if {over, under} <= taken.keys():
            what = f"{work.name}: step time of {over}{words} over {under}"
            found.append(Bar(what, statistics.median(ratios(taken, over, under)), limit))

    if work.bar is not None:
        time("instrumented", "stock", work.bar)
        time("callback", "weights", work.bar, " (InstrumentCallback, all weights)")
    if work.speed_bar is not None and {"instrumented", "stock"} <= taken.keys():
        # the batches are the same, so tokens a second are as times are, the other way round
        faster = [1 / ratio for ratio in ratios(taken, "instrumented", "stock")]
        what = f"{work.name}: supervised tokens/s of instrumented over stock"
        found.append(Bar(what, statistics.median(faster), work.speed_bar, at_least=True))
    if work.peak_bar is not None and {"instrumented", "stock"} <= taken.keys():
        peaks = [taken[name].steps[-1]["peak_mib"] for name in ("instrumented", "stock")]
        found.append(Bar(f"{work.name}: peak memory of instrumented over stock", peaks[0] / peaks[1], work.peak_bar))
    if work.bar is not None and set(CORE) <= set(work.contenders):
        limit = WITH_EXTENSION if extension else WITHOUT_EXTENSION
        time("instrumented", "plain", limit, " (C extension)" if extension else " (ATen)")
        time("aten", "plain_aten", WITHOUT_EXTENSION, " (instrumented without the C extension)")
    return found
