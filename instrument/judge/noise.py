"""The wobble of a series: a noise model that a trend, outliers and rounding do not fool.

    x_i = m_i + e_i,   i < n:   a level m and a wobble e, drawn anew at every evaluation

    sigma   scatter of x_{i+1} - x_i over sqrt(2): outliers are cut off, a trend that is even cancels
    rho     correlation of neighbours, of what a running mean leaves; where n < 40 cannot tell, what is assumed

What such a series did, course.py tells. Source: a scale from differences, von Neumann (1941).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

# Over what the second differences say, which scatter more: of noise alone the first ones stay the smaller estimate.
SMOOTH = 2.0
# A first quarter that falls all the way by so many sigma of the rest is no wobble: of 15 values it tripled sigma.
STEEP = 6.0
# Correlation of neighbours is not known from fewer, and one above MOST_RHO is a trend.
KNOWN_RHO, MOST_RHO, AROUND, ALIKE = 40, 0.8, 15, 30
# Below FEW values the scatter is not known: no evaluation of a hundred rows wobbles by more than ASSUMED of its level.
FEW, ASSUMED = 6, 0.05
# From so many values on a first quarter that is steep is left out of sigma whether or not each value is below the last:
# what remains shows the scatter well enough.
PLENTY = 20


@dataclass(frozen=True)
class Noise:
    """The wobble of a series.

    Attributes:
        sigma: standard deviation of a value about its level, in the units of the series; 0 where nothing moves.
        rho: correlation of neighbours, 0 to MOST_RHO.
        known: whether it was measured; of fewer than FEW values it is assumed.
    """

    sigma: float
    rho: float = 0.0
    known: bool = True

    @property
    def inflation(self) -> float:
        """By how much the error of a long mean is larger than of independent values."""
        return math.sqrt((1 + self.rho) / (1 - self.rho))


def quantum(values: np.ndarray) -> float:
    """The step of the last printed decimal, 0 where there are more than six."""
    for digits in range(7):
        if np.all(np.abs(values - np.round(values, digits)) <= 1e-9):
            return 10.0**-digits
    return 0.0


def deviation(values: np.ndarray) -> float:
    """Their standard deviation about 0 without the outliers: rounds of a mean square cut off at 3 deviations.

    It does not vanish where rounding makes more than half of them 0, as a median deviation does.
    """
    if not len(values):
        return 0.0
    size = np.abs(values)
    scale = 1.4826 * float(np.median(size))
    if scale == 0:
        scale = float(np.sqrt(np.mean(np.sort(size)[: math.ceil(0.95 * len(size))] ** 2))) or float(size.mean())
    for _ in range(3):
        if scale == 0:
            return 0.0
        # a Gaussian that is cut off at 2.5 keeps 0.9776 of its standard deviation
        scale = float(np.sqrt(np.mean(np.minimum(size, 2.5 * scale) ** 2))) / 0.9776
    return scale


def noise_of(values: np.ndarray, assumed: float = ASSUMED, alike: float = 0.0) -> Noise:
    """The wobble of a series of finite values.

    Args:
        values: (n,).
        assumed: the least wobble, as a share of the level, where fewer than FEW values cannot show it.
        alike: the correlation of neighbours that such series usually have, as if ALIKE pairs had shown it.
    """
    x = np.asarray(values, "float64")
    least = quantum(x) / 2 if len(x) else 0.0
    sigma, start = _sigma(x), len(x) // 4
    if len(x) >= 2 * FEW and (len(x) >= PLENTY or np.all(np.diff(x[: start + 1]) < 0)):
        rest = _sigma(x[start:])
        sigma = rest if x[0] - x[start] > STEEP * rest else sigma
    if len(x) < FEW:
        return Noise(max(sigma, least, assumed * abs(float(np.median(x))) if len(x) else 0.0), known=False)
    if len(x) < KNOWN_RHO:
        rho = correlation(x, sigma, alike) if alike else 0.0
    else:
        rho = correlation(x, sigma, alike) if sigma > least else 0.0
    return Noise(max(sigma / math.sqrt(1 - rho), least), rho)


def _sigma(x: np.ndarray) -> float:
    """From differences; a smooth turn is no wobble: its second differences vanish, those of noise are sqrt(6) sigma."""
    one = np.diff(x)
    sigma = deviation(one - np.median(one)) / math.sqrt(2) if len(one) > 1 else 0.0
    two = np.diff(one)
    return min(sigma, SMOOTH * deviation(two - np.median(two)) / math.sqrt(6)) if len(x) >= FEW else sigma


def correlation(x: np.ndarray, sigma: float, alike: float = 0.0) -> float:
    """Of neighbours, 0 to MOST_RHO: of what is left of each value beside the mean of the AROUND about it.

    Where the level itself moves by a third of a sigma a step it is left out. A mean of 15 takes its part of the
    correlation along: of independent values -0.1 is left, of an AR of 0.5 about 0.3, hence the correction. A few pairs
    say little: those of a series that rises left 0.8 in 7 of 100, until they were weighed against `alike`.
    """
    if len(x) < AROUND:
        return alike
    half = AROUND // 2
    inner = x[half : len(x) - half]
    around = np.convolve(x, np.full(AROUND, 1 / AROUND), "valid")
    lever = np.arange(half, -half - 1, -1.0)
    slope = np.convolve(x, lever / np.sum(lever**2), "valid")
    rest = inner - around
    wide = deviation(rest)
    rest = np.where(np.abs(slope) < 0.35 * sigma, np.clip(rest, -2.5 * wide, 2.5 * wide), np.nan)
    both = np.isfinite(rest[1:]) & np.isfinite(rest[:-1])
    n = int(both.sum())
    if (n < AROUND and not alike) or wide == 0:
        return 0.0
    left = float(np.sum(rest[1:][both] * rest[:-1][both]) / np.nansum(rest**2)) if n else 0.0
    seen = 1.25 * (left + 0.1)
    return min(max((n * seen + ALIKE * alike) / (n + ALIKE) if alike else seen, 0.0), MOST_RHO)
