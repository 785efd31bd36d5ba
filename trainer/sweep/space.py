"""The values that a study tries: a grid of them, or points of a scrambled Sobol sequence.

    a share u of [0, 1) of   linear   low + u (high - low)
                             log      low (high / low)^u
                             choices  choices[floor(u n)]
    a grid of `points`       the same at u = 0, 1/(points-1), ..., 1; every choice

Numbers are rounded to three digits, so that what is read is what was run. Source of the sequence: torch's SobolEngine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

DIGITS = 3


@dataclass(frozen=True)
class Range:
    """Numbers from low to high.

    Attributes:
        scale: "linear" or "log".
        points: of a grid; None where none is asked for.
        whole: whether only whole numbers will do.
    """

    low: float
    high: float
    scale: str = "linear"
    points: int | None = None
    whole: bool = False

    def at(self, share: float) -> float | int:
        """The value at a share of the range."""
        if self.scale == "log":
            value = self.low * (self.high / self.low) ** share
        else:
            value = self.low + share * (self.high - self.low)
        if self.whole:
            return int(min(self.high, max(self.low, round(value))))
        return float(f"{value:.{DIGITS}g}")

    def grid(self) -> list[Any]:
        """Its points, ends included; equal ones once."""
        n = self.points or 0
        return list(dict.fromkeys(self.at(i / (n - 1)) for i in range(n)))

    def as_dict(self) -> dict[str, Any]:
        ends = (int(self.low), int(self.high)) if self.whole else (self.low, self.high)
        found = {"low": ends[0], "high": ends[1], "scale": self.scale}
        return found if self.points is None else found | {"points": self.points}


@dataclass(frozen=True)
class Choices:
    """Values of any kind."""

    values: tuple[Any, ...]

    def at(self, share: float) -> Any:
        """The choice at a share."""
        return self.values[min(len(self.values) - 1, int(share * len(self.values)))]

    def grid(self) -> list[Any]:
        return list(self.values)

    def as_dict(self) -> list[Any]:
        return list(self.values)


Space = Mapping[str, "Range | Choices"]


def grid(space: Space) -> list[dict[str, Any]]:
    """Every combination; the last key changes fastest."""
    return [dict(zip(space, values, strict=True)) for values in product(*(one.grid() for one in space.values()))]


def sobol(space: Space, n: int, seed: int) -> list[dict[str, Any]]:
    """The first n points of the sequence with this seed."""
    import torch  # takes seconds

    engine = torch.quasirandom.SobolEngine(len(space), scramble=True, seed=seed)
    shares: Sequence[Sequence[float]] = engine.draw(n, dtype=torch.float64).tolist()
    return [{key: one.at(share) for (key, one), share in zip(space.items(), point, strict=True)} for point in shares]
