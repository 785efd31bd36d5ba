"""How many values of a gradient would overflow and underflow at other loss scales and in other dtypes.

For a tensor as it was stored, in fp16 at loss scale S, and a scale S 2^k:

    overflow    |g| 2^k >= 65520                     exact
    underflow   0 < |g| 2^k <= 2^-25                 exact for k <= 0, in addition to what is lost at S already
                at most what is lost at S            for k > 0: a value that was lost may come back

fp8 rounds what fp16 has rounded before, and at the scale S: bounds. bf16 needs no scale: it is counted at scale 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

# (values from here on round to infinity or to the largest number, values up to here to zero): half of the last step
FP16 = (65520.0, 2.0**-25)
BF16 = (2.0**128 * (1 - 2.0**-9), 2.0**-134)
FP8_E4M3 = (464.0, 2.0**-10)
FP8_E5M2 = (61440.0, 2.0**-17)


@dataclass(frozen=True)
class Counts:
    """Of one tensor or a sum of several.

    Attributes:
        n: values.
        overflow, underflow: at each of the scales.
        bf16, e4m3, e5m2: (overflow, underflow) there.
    """

    n: int
    overflow: tuple[int, ...]
    underflow: tuple[int, ...]
    bf16: tuple[int, int]
    e4m3: tuple[int, int]
    e5m2: tuple[int, int]

    def __add__(self, other: Counts) -> Counts:
        def pair(a: tuple[int, ...], b: tuple[int, ...]) -> tuple:
            return tuple(x + y for x, y in zip(a, b, strict=True))

        return Counts(
            self.n + other.n,
            pair(self.overflow, other.overflow),
            pair(self.underflow, other.underflow),
            pair(self.bf16, other.bf16),
            pair(self.e4m3, other.e4m3),
            pair(self.e5m2, other.e5m2),
        )


def count_at_scales(gradient: torch.Tensor, scale: float, scales: Sequence[float], lost: int | None = None) -> Counts:
    """Counts of a stored gradient at other scales.

    Args:
        gradient: fp16, of any shape, as it was stored at `scale`.
        scale: the loss scale in force, a power of two.
        scales: others, powers of two.
        lost: values that were rounded to zero at `scale`; None if nobody counted: then all zeros could be.
    """
    ordered = gradient.detach().double().abs().flatten().sort().values
    n_zero = int((ordered == 0).sum())
    lost = n_zero if lost is None else lost

    def beyond(threshold: float) -> int:
        return ordered.numel() - int(
            torch.searchsorted(ordered, torch.tensor(threshold, dtype=torch.float64, device=ordered.device))
        )

    def below(threshold: float) -> int:
        limit = torch.tensor(threshold, dtype=torch.float64, device=ordered.device)
        return int(torch.searchsorted(ordered, limit, right=True)) - n_zero

    def at(limits: tuple[float, float], factor: float) -> tuple[int, int]:
        return beyond(limits[0] / factor), below(limits[1] / factor) + lost

    fp16 = [at(FP16, other / scale) for other in scales]
    return Counts(
        ordered.numel(),
        tuple(overflow for overflow, _ in fp16),
        tuple(underflow for _, underflow in fp16),
        at(BF16, 1 / scale),
        at(FP8_E4M3, 1.0),
        at(FP8_E5M2, 1.0),
    )
