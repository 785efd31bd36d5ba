"""The most that any test can find in a cell, at a false rate of 1 in 20: a bar above it is held by nobody.

spike   G = max (x_i - mean) / s of n logarithms. Of one value that stands out among normal ones, mean and deviation
        unknown, no test that is the same in every unit finds more (Ferguson, 1961, of Grubbs' test)
"""

from __future__ import annotations

import numpy as np

from .draw import expected_maximum

FALSE = 1 / 20
DRAWS, AT_ONCE = 20_000, 2000
"""The error of a share of 0.78 of so many is 0.003."""


def spike(n: int, sigma: float, factor: float, draws: int = DRAWS) -> float:
    """Share of runs of n log-normal norms in which the best test names one of `factor` times their expected maximum."""
    random = np.random.default_rng([n, round(1000 * sigma)])
    height = np.log(factor * expected_maximum(n, sigma)) / sigma
    alone, planted = [], []
    for _ in range(0, draws, AT_ONCE):
        x = random.standard_normal((AT_ONCE, n))
        alone.append(_grubbs(x))
        x[:, 0] = height
        planted.append(_grubbs(x))
    return float(np.mean(np.concatenate(planted) > np.quantile(np.concatenate(alone), 1 - FALSE)))


def _grubbs(x: np.ndarray) -> np.ndarray:
    return (x.max(axis=1) - x.mean(axis=1)) / x.std(axis=1, ddof=1)
