"""Whether a series that wobbles rose, fell, settled or stayed: tests that are held to the noise model of noise.py.

    T       max over i < k of the mean over a in [i, k), b in [k, n) of psi((x_b - x_a) / sigma),
            over sqrt(1 / (k - i) + 1 / (n - k));  psi cuts off at +-CLIP, so one outlier decides nothing

A series that nowhere rises has a T no larger than one that stays, whatever its shape: its pairs differ by less.
So one table of T, drawn from series that stay (`python -m benchmarks.judging --critical`), holds for every fall and
plateau, and the lowest value of a fall is compared with what as many draws reach by chance. A rise seen in the last
value alone is none: it counts as the lower of the last two.

Sources: scan over splits, Page (1954); pairs, Mann and Whitney (1947).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .noise import ASSUMED, FEW, KNOWN_RHO, Noise, noise_of

CLIP = 3.0
# Longer series are judged by the means of so many blocks, which also leaves their correlation behind.
BLOCKS = 200
# A change below this share of the level is not worth a name.
SMALL = 0.005
# What T reaches by chance in one of 100 series that stay, of the worst of three kinds of noise (Gaussian, Student's t
# with 3 degrees of freedom, 5% outliers), and from 40 on in one of 30 whose neighbours are correlated by 0.5; the first
# three are of assumed noise, which is wide, and that of 15 is lower, where false verdicts were rarest:
# python -m benchmarks.judging --critical
CRITICAL = {
    3: 2.4, 4: 2.8, 5: 2.8, 6: 3.25, 8: 3.2, 10: 3.5, 12: 3.2, 15: 3.25, 19: 3.5,
    20: 3.2, 30: 3.5, 39: 3.6, 40: 3.25, 60: 3.25, 80: 3.3, 120: 3.4, 200: 3.7,
}  # fmt: skip
# The same where neighbours are taken for correlated until they show it (`alike`): that widens the noise already. The
# second table that --critical prints; fewer than 40 values are told by it of a training loss alone. Those entries stand
# above what is printed (one of 50 series whose neighbours are correlated by 0.5), by as much as the cells of the
# benchmark asked for: T in both directions and `trend` may speak, and 6 values should say little.
CRITICAL_ALIKE = {
    6: 2.4, 8: 2.0, 10: 2.1, 12: 2.25, 15: 2.4, 20: 2.55, 30: 2.75, 39: 2.9,
    40: 3.05, 60: 3.0, 80: 3.1, 120: 3.3, 200: 3.55,
}  # fmt: skip
# By how much the fit of shapes that have ended must be better than that of shapes that go on (chi-squared units):
# the shapes of `_shapes` are told apart by 16 and more where the fall is as large as CRITICAL finds.
GOES_ON = 2.5
# What ended is told the more easily the more values there are: by the least number of them, how much better the other
# may fit. At 40 values a line of 3 sigma is called ended in 3 of 100, at 80 in fewer than 1.
ENDED = {0: -0.7, 15: 0.3, 30: 0.7, 80: 1.5}
# Standard errors of the best of those shapes that chance alone seldom reaches, by the least number of values; what it
# costs in false verdicts is printed by python -m benchmarks.judging.
FALL = {0: 4.3, 10: 3.4, 15: 3.1, 30: 2.9, 40: 2.8, 80: 2.5}
FALL_ALIKE = {0: 2.5, 40: 2.8, 80: 2.65}
# Fewer are too few to say that nothing moved.
STAYS = 10
# A rise of so many values or more is over where the last ones keep less of it than this.
CAME_BACK, BACK = 8, 0.35
# A fall is looked at from where it is within so many sigma of its end: what came before says nothing of the end.
NEAR = 10.0


@dataclass(frozen=True)
class Course:
    """What a series did.

    Attributes:
        kind: "rose" (after its lowest stretch), "falling" (still, at the end), "settled" (fell and stays), "fell" (and
            whether it goes on cannot be told), "flat" (stays), "last" (a rise in the last value alone), "undecided".
        low, at: mean of the lowest stretch that a rise is held against (else of the beginning), and the index of its
            middle.
        end: mean of the stretch at the end.
        noise: its wobble.
        n: values judged.
    """

    kind: str
    low: float
    at: int
    end: float
    noise: Noise
    n: int

    @property
    def wobble(self) -> float:
        """sigma in percent of the end."""
        return 100 * self.noise.sigma / abs(self.end) if self.end else 0.0


def blocks(values: np.ndarray, most: int = BLOCKS) -> tuple[np.ndarray, np.ndarray]:
    """At most so many means of neighbours, and the index of each one's middle; outliers of a block are cut off."""
    x = np.asarray(values, "float64")
    if len(x) <= most:
        return x, np.arange(len(x))
    size = math.ceil(len(x) / most)
    full = x[len(x) % size :].reshape(-1, size)
    middle = np.median(full, axis=1, keepdims=True)
    reach = 3 * 1.4826 * np.median(np.abs(full - middle), axis=1, keepdims=True)
    means = np.clip(full, middle - reach, middle + reach).mean(axis=1)
    return means, len(x) % size + size // 2 + size * np.arange(len(means))


def statistic(values: np.ndarray, noise: Noise) -> tuple[float, int, int]:
    """T of a rise, with i and k of its split; -inf where the series is too short."""
    x = np.array(values, "float64")
    n = len(x)
    x[-1] = min(x[-2:])
    shortest = 1 if n < FEW else 2 if n < 12 else 3 if n < 20 else 4 if n < 60 else 6
    if n < 3 or noise.sigma == 0:
        return -math.inf, 0, 0
    pairs = np.clip((x[None, :] - x[:, None]) / noise.sigma, -CLIP, CLIP)
    total = np.zeros((n + 1, n + 1))
    total[1:, 1:] = pairs.cumsum(0).cumsum(1)
    i, k, before, after = _splits(n, shortest)
    mean = (total[k, n] - total[i, n] - total[k, k] + total[i, k]) / (before * after)
    size = mean / np.sqrt(1 / before + 1 / after) / noise.inflation
    best = int(np.argmax(size))
    return float(size[best]), int(i[best]), int(k[best])


@lru_cache(maxsize=256)
def _splits(n: int, shortest: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    i, k = np.meshgrid(np.arange(n), np.arange(n), indexing="ij")
    kept = (k - i >= shortest) & (n - k >= max(2, shortest))
    i, k = i[kept], k[kept]
    return i, k, k - i, n - k


def critical(n: int, alike: bool = False) -> float:
    """What T of n values reaches by chance in one of 100 series, between the entries of its table in log n."""
    table = CRITICAL_ALIKE if alike else CRITICAL
    return float(np.interp(math.log(n), np.log(list(table)), list(table.values())))


def from_table(table: Mapping[int, float], n: int) -> float:
    """The entry of the largest least number that n reaches."""
    return table[max(least for least in table if n >= least)]


def judge(
    values: np.ndarray,
    *,
    small: float = SMALL,
    assumed: float = ASSUMED,
    sigma: float = 0.0,
    alike: float = 0.0,
    alike_from: int = KNOWN_RHO,
) -> Course:
    """What a series did, where lower is better.

    Args:
        values: (n,), finite, in order of time.
        small: changes below this share of the level are none.
        assumed: the wobble that fewer than FEW values are taken to have, as a share of their level.
        sigma: the least wobble, where counting tells it (a share of correct rows).
        alike: the correlation of neighbours that such series usually have.
        alike_from: the least number of values of which that is assumed.
    """
    x = np.ascontiguousarray(values, "float64")
    return _judged(x.tobytes(), small, assumed, sigma, alike if max(alike_from, FEW) <= len(x) <= BLOCKS else 0.0)


@lru_cache(maxsize=32)
def _judged(raw: bytes, small: float, assumed: float, sigma: float, alike: float) -> Course:
    """Several rules ask of the same series."""
    values = np.frombuffer(raw)
    x, where = blocks(values)
    n = len(x)
    seen = noise_of(x, 0.0 if sigma else assumed, alike)
    noise = Noise(max(seen.sigma, sigma), seen.rho, seen.known or sigma > 0)
    if n < 2:
        return Course("undecided", float(x[0]), 0, float(x[0]), noise, n)
    worth = small * abs(float(np.median(x)))
    size, i, k = statistic(x, noise)
    limit = critical(n, alike > 0)
    low, end = float(np.mean(x[i:k])) if k else float(x.min()), float(np.mean(x[k:])) if k else float(x[-1])
    if size >= limit and end - low > worth and not _came_back(x, low, end):
        return Course("rose", low, int(where[(i + k - 1) // 2]), end, noise, n)
    down, i, k = statistic(-x, noise)
    first, end = (float(np.mean(x[i:k])), float(np.mean(x[k:]))) if k else (float(x[0]), float(x[-1]))
    if down < limit and trend(x, noise) > from_table(FALL_ALIKE if alike else FALL, n):
        i, k = 0, max(1, n // 10)
        first, end, down = float(np.mean(x[:k])), float(np.mean(x[n // 2 :])), limit
    if down >= limit and first - end > worth:
        return Course(_ending(x, noise, worth), first, int(where[(i + k - 1) // 2]), end, noise, n)
    lately = x[max(0, n - 6) : n - 1]
    last = x[-1] - float(np.mean(lately))
    middle, end = float(np.mean(x[: max(1, n // 2)])), float(np.mean(x[n // 2 :]))
    if last > max(3.5 * noise.sigma * math.sqrt(1 + 1 / len(lately)), worth):
        return Course("last", float(np.mean(lately)), int(where[-2]), float(x[-1]), noise, n)
    still = n >= STAYS or (noise.sigma == 0 and n >= 3)
    if alike and n < KNOWN_RHO:  # of what moves if neighbours are independent it is not known whether it stays
        still = _judged(raw, small, assumed, sigma, 0.0).kind == "flat"
    return Course("flat" if still else "undecided", middle, int(where[n // 4]), end, noise, n)


def _came_back(x: np.ndarray, low: float, end: float) -> bool:
    """Whether the last values, less one outlier, are again nearer to the lowest stretch than to what followed it."""
    n = len(x)
    lately = float(np.median(x[-3:])) if n >= 20 else float(np.max(x[-2:]))
    return n >= CAME_BACK and lately - low < BACK * (end - low)


def _ending(x: np.ndarray, noise: Noise, worth: float) -> str:
    """Of a series that fell: whether it still does.

    From where it is within NEAR sigma of its end the best of the shapes that have ended is held against the best of
    those that go on.
    """
    x = _without_outliers(x, 3 * noise.sigma)
    tail = float(np.median(x[-max(3, len(x) // 5) :]))
    far = np.flatnonzero(x > tail + NEAR * noise.sigma)
    y = x[min(int(far[-1]) if len(far) else 0, max(len(x) - FEW, 0)) :]
    if len(y) < FEW or noise.sigma == 0:
        return "fell"
    ended, going = _shapes(len(y))
    fits = [np.max(np.maximum(shapes @ y, 0) ** 2) for shapes in (ended, going)]
    better = (fits[1] - fits[0]) / (noise.sigma * noise.inflation) ** 2
    if better > GOES_ON:
        best = going[int(np.argmax(going @ y))]
        error = noise.sigma * noise.inflation * math.sqrt(16 / len(y))
        foretold = _lately(best) * float(best @ y)
        least = worth / 4 if foretold < worth / 4 else min(worth / 4, foretold - 2 * error)
        return "falling" if _lately(y) > least else "settled"
    return "settled" if better < from_table(ENDED, len(y)) else "fell"


def _lately(y: np.ndarray) -> float:
    """By how much the mean of the last quarter is below that of the one before it."""
    half, quarter = len(y) // 2, (len(y) - len(y) // 2) // 2
    return float(np.mean(y[half : half + quarter]) - np.mean(y[half + quarter :]))


def trend(x: np.ndarray, noise: Noise) -> float:
    """How well a fall of the best of `_shapes` fits, in standard errors: it sees one that is over after a few values.

    As T it is no larger where the level rises instead; of -x it is that of a rise.
    """
    if len(x) < FEW or noise.sigma == 0:
        return -math.inf
    y = _without_outliers(x, noise.sigma)
    return max(float(np.max(shapes @ y)) for shapes in _shapes(len(x))) / noise.sigma / noise.inflation


def _without_outliers(y: np.ndarray, reach: float) -> np.ndarray:
    """Values further than reach outside of the two on either side are cut off there."""
    padded = np.concatenate([[np.nan] * 2, y, [np.nan] * 2])
    beside = np.stack([padded[0:-4], padded[1:-3], padded[3:-1], padded[4:]])
    return np.clip(y, np.nanmin(beside, axis=0) - reach, np.nanmax(beside, axis=0) + reach)


@lru_cache(maxsize=256)
def _shapes(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Falls that ended before 0.4 of the way, and falls that go on: (shapes, n), centred, of length 1."""
    t = np.arange(n) / (n - 1)
    ended = [np.maximum(1 - t / k, 0) for k in (0.1, 0.2, 0.3, 0.4)] + [np.exp(-t / k) for k in (0.03, 0.06, 0.12)]
    going = [1 - t] + [np.exp(-t / k) for k in (0.4, 0.6, 1.0)] + [np.minimum(1, 2 - 2 * t), np.sqrt(1.0001 - t)]
    both = []
    for shapes in (ended, going):
        centred = np.array(shapes)
        centred = centred - centred.mean(axis=1, keepdims=True)
        both.append(centred / np.linalg.norm(centred, axis=1, keepdims=True))
    return both[0], both[1]
