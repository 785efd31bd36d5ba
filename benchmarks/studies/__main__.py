"""Counts and prints; exit code 1 if a cell falls short of its bar."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from lora_train.instrument.advise.rules import RULES

from . import __doc__ as description
from .kinds import Cell, kinds

FIRST_SEED = 1_000_000
"""The thresholds were chosen on seeds below this one."""
SEEDS, QUICK_SEEDS = 50, 2
RIGHT, WRONG = 0.95, 0.05
CLAIMS = frozenset({"p2_edge", "p1_edge"})
"""Sentences that claim something although their verdict is "not answered": which run would answer."""


@dataclass
class Rate:
    """What was said of a cell's studies.

    Attributes:
        cell: which.
        right, wrong, of: studies.
        said: every sentence of its rule, by how often.
    """

    cell: Cell
    right: int = 0
    wrong: int = 0
    of: int = 0
    said: Counter[str] = field(default_factory=Counter)

    @property
    def passes(self) -> bool:
        """Whether the bars are held; with few seeds one may be missed."""
        slack = 0 if self.of >= SEEDS else 1
        return self.right >= math.ceil(RIGHT * self.of) - slack and self.wrong <= WRONG * self.of + slack

    def line(self) -> str:
        """One line of the table."""
        said = ", ".join(f"{key} {n}" for key, n in self.said.most_common(3))
        verdict = "PASS" if self.passes else "SHORT"
        share = f"right {100 * self.right / self.of:5.1f}%  wrong {100 * self.wrong / self.of:4.1f}%"
        cell = self.cell
        name = f"{cell.rule:<4} {cell.kind:<36} {cell.side:<6} {cell.effect:3g} sd"
        return f"{name}  {share}  {self.of:>3}  {verdict}  {said}"


def cells() -> list[Cell]:
    """Every cell of the table."""
    return [cell for kind in kinds() for cell in kind.cells()]


def count(place: int, seeds: int, first: int = FIRST_SEED) -> Rate:
    """What is said of so many studies of the cell at that place."""
    return Rate(cells()[place], *_counts(place, seeds, first))


def _counts(place: int, seeds: int, first: int) -> tuple[int, int, int, Counter[str]]:
    cell = cells()[place]
    right = wrong = 0
    said: Counter[str] = Counter()
    for seed in range(first, first + seeds):
        with np.errstate(all="ignore"):
            found = list(RULES[cell.rule](cell.make(np.random.default_rng([seed, place]), cell.effect)))
        keys = {advice.key.removeprefix("advise.") for advice in found}
        open_ = all(advice.verdict == "not answered" for advice in found)
        claims = not open_ or bool(keys & CLAIMS)
        is_right = bool(keys & set(cell.says)) if cell.says else not claims
        right, wrong = right + is_right, wrong + (claims and not is_right)
        said.update(keys)
    return right, wrong, seeds, said


def measure(places: Sequence[int], seeds: int, workers: int = 1, first: int = FIRST_SEED) -> Iterator[Rate]:
    """The rates of the cells at these places of `cells()`, in their order."""
    if workers == 1:
        yield from (count(place, seeds, first) for place in places)
        return
    every = cells()
    with ProcessPoolExecutor(workers) as pool:
        counted = [(place, pool.submit(_counts, place, seeds, first)) for place in places]
        for place, future in counted:
            yield Rate(every[place], *future.result())


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table.

    Returns:
        0 if every cell holds its bars, else 1.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.studies",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kind", action="append", help="only kinds with this in their name; may be given again")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"of each cell ({SEEDS})")
    parser.add_argument("--first", type=int, default=FIRST_SEED, help=f"the first seed ({FIRST_SEED})")
    parser.add_argument("--workers", type=int, default=2, help="processes (2)")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SEEDS} seeds")
    options = parser.parse_args(arguments)
    every = cells()
    places = [i for i, cell in enumerate(every) if not options.kind or any(word in cell.kind for word in options.kind)]
    began, n_short = time.monotonic(), 0
    for rate in measure(places, QUICK_SEEDS if options.quick else options.seeds, options.workers, options.first):
        n_short += not rate.passes
        print(rate.line(), flush=True)
    n_kinds = len({every[place].kind for place in places})
    print(f"{n_kinds} kinds, {len(places)} cells, {n_short} short, {time.monotonic() - began:.0f} s")
    return 1 if n_short else 0


if __name__ == "__main__":
    sys.exit(main())
