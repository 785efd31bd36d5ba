"""Counts and prints; exit code 1 if a cell falls short of its bar.

A bar that no test can hold stays as it is and is printed as short, with what the best test finds: the exit code asks
for NEAR_BEST of that.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from lora_train.instrument.judge.course import CRITICAL, CRITICAL_ALIKE, statistic
from lora_train.instrument.judge.explain.rules import evaluation, loss
from lora_train.instrument.judge.noise import KNOWN_RHO, noise_of

from . import __doc__ as description
from . import draw
from .cells import PARTS, Cell, cells
from .summary import summary

FIRST_SEED = 3_000_000
"""The thresholds were chosen on seeds below this one."""
SEEDS, QUICK_SEEDS = 200, 10
QUICK = {"eval": (5, 12, 15, 40), "rows": (100,), "accuracy": (20,)}
"""Of each part the sizes that --quick counts; of the others QUICK_LINES."""
QUICK_LINES = (200,)
CRITICAL_SEEDS, BEYOND = 4000, 0.002
NEAR_BEST = 0.7


@dataclass(frozen=True)
class Rate:
    """A cell and in how many of so many seeds one of its sentences was said."""

    cell: Cell
    said: int
    of: int

    @property
    def allowed(self) -> int:
        """How many may be said falsely, or have to be found: the bar itself with SEEDS.

        With fewer it is the quantile of a binomial that one cell of 500 at its bar goes beyond.
        """
        bar = self.cell.bar * self.of
        if self.of >= SEEDS:
            return round(bar)
        wrong = 1 - self.cell.bar if self.cell.found else self.cell.bar
        most, beyond = -1, 1.0
        while beyond > BEYOND:
            most += 1
            beyond -= math.comb(self.of, most) * wrong**most * (1 - wrong) ** (self.of - most)
        return self.of - most if self.cell.found else most

    @property
    def passes(self) -> bool:
        """Whether the bar is held."""
        return self.said >= self.allowed if self.cell.found else self.said <= self.allowed

    @cached_property
    def best(self) -> float | None:
        """The share that the best test finds, where it is known and below the bar."""
        best = self.cell.best() if self.cell.best is not None and not self.passes else None
        return best if best is not None and best < self.cell.bar else None

    @property
    def short(self) -> bool:
        """Whether it finds less than its bar, or than NEAR_BEST of the best test where that finds less too."""
        return not self.passes and (self.best is None or self.said < NEAR_BEST * self.best * self.of)

    def line(self) -> str:
        """One line of the table."""
        kind = "found" if self.cell.found else "false"
        sign = ">=" if self.cell.found else "<="
        rate = f"{100 * self.said / self.of:5.1f}%  {sign} {100 * self.cell.bar:2.0f}%"
        verdict = "PASS" if self.passes else "SHORT"
        if self.best is not None:
            verdict += f" best test {100 * self.best:.0f}%"
        return f"{self.cell.part:<10} {self.cell.name:<36} {self.cell.n:>6}  {kind} {rate}  {self.of:>4}  {verdict}"


def count(cell: Cell, seeds: int, first: int = FIRST_SEED) -> int:
    """In how many of the seeds one of the cell's sentences is said."""
    said = 0
    for seed in range(first, first + seeds):
        findings = cell.make(np.random.default_rng([seed, cell.n]))
        said += not cell.keys.isdisjoint(finding.key.removeprefix("explain.") for finding in findings)
    return said


def measure(wanted: Sequence[int], seeds: int, workers: int = 1, first: int = FIRST_SEED) -> Iterator[Rate]:
    """The rates of the cells at these places of `cells()`, in their order."""
    every = cells()
    counts = [max(1, round(seeds * every[place].share)) for place in wanted]
    with ProcessPoolExecutor(workers) as pool:
        said = pool.map(partial(_count_at, first=first), wanted, counts, chunksize=2)
        for place, of, n in zip(wanted, counts, said, strict=True):
            yield Rate(every[place], n, of)


def _count_at(place: int, seeds: int, first: int) -> int:
    return count(cells()[place], seeds, first)


def quick() -> list[int]:
    """Places of the cells that --quick counts."""
    return [place for place, cell in enumerate(cells()) if cell.n in QUICK.get(cell.part, QUICK_LINES)]


def critical(seeds: int = CRITICAL_SEEDS, *, alike: bool = False) -> dict[int, float]:
    """CRITICAL of instrument/judge/course.py, or CRITICAL_ALIKE, but for its first entries, from seeds of their own.

    Of fewer than KNOWN_RHO values a training loss alone takes neighbours for correlated: what its rule assumes.
    """
    table = {}
    for n in (n for n in (CRITICAL_ALIKE if alike else CRITICAL) if n > 5):
        rho = (loss.ALIKE if n < KNOWN_RHO else evaluation.ALIKE) if alike else 0.0
        kinds = {"Gaussian": 0.99, "Student t3": 0.99, "5% outliers": 0.99}
        if rho or n >= KNOWN_RHO:
            kinds["AR 0.5"] = 0.97 if n >= KNOWN_RHO else 0.98
        reached = []
        for kind, share in kinds.items():
            random = np.random.default_rng([n, 1])
            drawn = (
                draw.correlated(n, random) if kind == "AR 0.5" else draw.noise(kind, n, random) for _ in range(seeds)
            )
            reached.append(float(np.quantile([statistic(x, noise_of(x, alike=rho))[0] for x in drawn], share)))
        table[n] = round(max(reached), 2)
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table.

    Returns:
        0 if every cell holds its bar, else 1.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.judging",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--part", choices=PARTS, action="append", help="only this one; may be given again")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"of each cell ({SEEDS})")
    parser.add_argument("--first", type=int, default=FIRST_SEED, help=f"the first seed ({FIRST_SEED})")
    parser.add_argument("--workers", type=int, default=2, help="processes (2)")
    parser.add_argument("--quick", action="store_true", help=f"some sizes, {QUICK_SEEDS} seeds")
    parser.add_argument("--short", action="store_true", help="print only what falls short")
    parser.add_argument("--summary", action="store_true", help="print the table of docs/measured.md at the end")
    parser.add_argument("--critical", action="store_true", help="print the tables of critical values instead")
    options = parser.parse_args(arguments)
    if options.critical:
        print(critical())
        print(critical(alike=True))
        return 0
    every = cells()
    places = quick() if options.quick else list(range(len(every)))
    places = [place for place in places if every[place].part in (options.part or PARTS)]
    began, n_short, n_beyond = time.monotonic(), 0, 0
    counted = []
    for rate in measure(places, QUICK_SEEDS if options.quick else options.seeds, options.workers, options.first):
        counted.append(rate)
        n_short += rate.short
        n_beyond += rate.best is not None
        if not (options.short and rate.passes):
            print(rate.line(), flush=True)
    if options.summary:
        print("\n".join(summary(counted)))
    beyond = f" and {n_beyond} beyond the best test" if n_beyond else ""
    print(f"{len(places)} cells, {n_short} short{beyond}, {time.monotonic() - began:.0f} s")
    return 1 if n_short else 0


if __name__ == "__main__":
    sys.exit(main())
