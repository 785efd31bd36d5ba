"""Foresees fp16 overflow: fits the trend of each site's absmax and says at which step it meets the limit.

    linear         y(t) = a + b t          left = (limit e^-q - a) / b
    exponential    ln y(t) = a + g t       left = (ln limit - q - a) / g

t counts steps from the present one, and q = EDGE sigma, as the upper edge of the scatter gets there before its middle.
Residuals are relative (of ln y) and sigma is their standard deviation. Several windows of the last observations are
fitted, longest first, by least squares without outliers; a model speaks only when the window is straight under it
(its later half has the same slope), its rival fits clearly worse or says the same, and the standard error of `left`
is small. Where few points or a misfit make sigma look smaller than it is, it is widened: by Student's t, and by the
correlation of neighbouring residuals. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# The largest finite fp16 number.
LIMIT = 65504.0
# Observations kept of each site. At +-5% noise and +110 a step, 256 give the slope to 2%; 128 only to 5%.
KEPT = 256
# Windows in observations; the shortest sees +5% a step, which takes 63 steps from 3000, after 1.7x.
WINDOWS = (256, 128, 64, 32, 16)
# A line through three points always looks straight enough.
MIN_POINTS = 4
# Looking at four steps' news at once divides the cost by four and costs at most three steps of lead.
FIT_EVERY = 2
# 1/32 of the limit: +5% a step takes 71 steps from there. Below it, warm-up looks like a drift and no one needs to act.
FLOOR = 1 / 32
# In steps; what is further off changes its course before it arrives.
HORIZON = 200.0
# A line is trusted for as long as it was seen, so that growth that saturates bends within the window. Exponential
# growth is trusted four times as long, after 1.5x: +5% a step from 3000 has shown 13 steps when 50 are left.
LINEAR_REACH, EXPONENTIAL_REACH = 0.7, 5.0
MIN_LOG_GROWTH = 0.4
# Standard error of `left`, as a share of it: a third of the 20% that a warning may be off. With less than 80 steps
# left the time to act matters more (a probed site has few points).
TOLERANCE, TOLERANCE_LATE, LATE = 0.06, 0.12, 80.0
# Slope over its standard error; over a thousand sites and thousands of steps, 5 comes up by chance.
MIN_T = 8.0
RISE = 0.2
NEWS = 0.1
ON_TREND = 1.5
# Slope of the later half over that of the whole window: a kink or saturation leaves this range.
STRAIGHT = (0.8, 1.33)
# ln of the likelihood ratio of the two models (e^3: 20 to 1), or how close their `left` must be.
FOR_CURVE, FOR_LINE = 7.0, 2.0
AGREE = 0.2
# Residuals beyond five robust deviations are outliers; with more than 15% of them there is no trend to speak of.
OUTLIER, MIN_KEPT_SHARE = 5.0, 0.85
# Uniform noise first crosses where the trend plus 1.2 deviations does, normal noise at 1.5.
EDGE = 1.3
# Half a unit in the last place of fp16, relative: no measured value is exacter.
ROUNDING = 2.0**-11


@dataclass(frozen=True)
class Forecast:
    """A site that is about to overflow.

    Attributes:
        site: its index.
        step: step of the warning.
        peak: upper edge of its absmax at that step, by the fit.
        limit: what it will meet.
        per_step: increase per step at present, in units of absmax.
        predicted_step: step at which it meets the limit.
    """

    site: int
    step: int
    peak: float
    limit: float
    per_step: float
    predicted_step: int


class Forecaster:
    """Keeps the last KEPT observations of each site and warns once for each.

    Args:
        n_sites: number of sites.
        limit: the magnitude that is not to be met.
    """

    def __init__(self, n_sites: int, limit: float = LIMIT):
        self._limit = limit
        self._logs = np.zeros((n_sites, KEPT))  # ln(absmax / limit)
        self._steps = np.zeros((n_sites, KEPT))
        self._next = np.zeros(n_sites, dtype=np.int64)  # observations so far, modulo KEPT the slot of the next one
        self._held = np.zeros(n_sites, dtype=np.int64)
        self._fresh = np.zeros(n_sites, dtype=bool)
        self._warned = np.zeros(n_sites, dtype=bool)
        self._last_step = self._last_fit = -FIT_EVERY

    def update(self, step: int, absmax: np.ndarray) -> list[Forecast]:
        """Takes a step's values; a step at or before the last one replaces what was seen from there on.

        Args:
            step: attempted optimizer step.
            absmax: float64 [n_sites], NaN where a site was not observed.

        Returns:
            A forecast for each site whose overflow came into sight, each site once.
        """
        if step <= self._last_step:
            self._forget(step)
        self._last_step = step
        sites = np.flatnonzero(np.isfinite(absmax) & (absmax > 0))
        slots = self._next[sites] % KEPT
        self._logs[sites, slots] = np.log(absmax[sites] / self._limit)
        self._steps[sites, slots] = step
        self._next[sites] += 1
        self._held[sites] = np.minimum(self._held[sites] + 1, KEPT)
        self._fresh[sites] = True
        if step - self._last_fit < FIT_EVERY:
            return []
        self._last_fit = step
        candidates = self._candidates()
        self._fresh[:] = False
        return self._search(step, candidates)

    def _forget(self, step: int) -> None:
        order = np.arange(KEPT)
        age = (self._next[:, None] - 1 - order) % KEPT
        dropped = ((self._steps >= step) & (age < self._held[:, None])).sum(axis=1)
        self._next -= dropped
        self._held -= dropped
        self._last_fit = min(self._last_fit, step - 1)

    def _candidates(self) -> np.ndarray:
        """Sites that could be within reach: what rose little is far from a limit that is far."""
        sites = np.flatnonzero(self._fresh & ~self._warned & (self._held >= MIN_POINTS))
        slots = (self._next[sites, None] - np.arange(1, 4)) % KEPT
        now = np.median(self._logs[sites[:, None], slots], axis=1)
        near = now > np.log(FLOOR)
        sites, now = sites[near], now[near]
        logs = np.where(np.arange(KEPT) < self._held[sites, None], self._logs[sites], np.inf)
        return sites[-now <= EXPONENTIAL_REACH * (now - logs.min(axis=1)) + 0.1]

    def _search(self, step: int, sites: np.ndarray) -> list[Forecast]:
        found: list[Forecast] = []
        held = self._held[sites]
        back = np.arange(KEPT, 0, -1)
        slots = (self._next[sites, None] - back) % KEPT  # oldest first
        x, logs, there = (
            self._steps[sites[:, None], slots] - step,
            self._logs[sites[:, None], slots],
            back <= held[:, None],
        )
        settled = np.zeros((len(sites), 2), dtype=bool)
        for size, shorter in zip(WINDOWS, (*WINDOWS[1:], 0), strict=True):
            rows = np.flatnonzero((held > shorter) & ~self._warned[sites])
            rows = rows[_rises(x[rows, -size:], logs[rows, -size:], there[rows, -size:])]
            if not len(rows):
                continue
            trend = _fit(x[rows, -size:], logs[rows, -size:], there[rows, -size:], settled[rows])
            settled[rows] |= trend.settled
            for k in np.flatnonzero(trend.trusted):
                # a sawtooth comes back to where it was; a drift goes where the site has not been
                older = logs[rows[k], :-size][there[rows[k], :-size]]
                if len(older) and np.quantile(older, 0.9) + NEWS > trend.level[k]:
                    continue
                site, left = int(sites[rows[k]]), int(np.ceil(trend.left[k]))
                peak, per_step = float(np.exp(trend.level[k])), float(trend.per_step[k])
                found.append(Forecast(site, step, peak * self._limit, self._limit, per_step * self._limit, step + left))
                self._warned[site] = True
        return found


@dataclass
class _Trend:
    """What windows [k] say: steps left, ln(upper edge / limit) now, limits per step, whether to believe it.

    `settled` [k, 2] is true where the linear or the exponential model goes on as it did or flattens, so that no shorter
    window is to be asked for it.
    """

    left: np.ndarray
    level: np.ndarray
    per_step: np.ndarray
    trusted: np.ndarray
    settled: np.ndarray


def _line(x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, ...]:
    """Weighted least squares of windows [k, w]: value at x=0, slope, mean of x, sum of squares of x, weight; [k]."""
    total = weight.sum(axis=1)
    mean_x = (weight * x).sum(axis=1) / total
    moment = weight * (x - mean_x[:, None])
    spread = (moment * x).sum(axis=1)
    slope = (moment * y).sum(axis=1) / spread
    return (weight * y).sum(axis=1) / total - slope * mean_x, slope, mean_x, spread, total


def _rises(x: np.ndarray, logs: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Windows that climb by more than chance, outliers included: the fit is worth its price."""
    with np.errstate(all="ignore"):
        weight = there.astype(np.float64)
        _, slope, _, spread, n = _line(x, logs, weight)
        dy = weight * (logs - ((weight * logs).sum(axis=1) / n)[:, None])
        return (slope > 0) & (slope**2 * spread > (dy * dy).sum(axis=1) * np.maximum(RISE, 32 / (64 + n)))


def _fit(x: np.ndarray, logs: np.ndarray, there: np.ndarray, settled: np.ndarray) -> _Trend:
    """Fits both models to windows [k, w] and takes the better one."""
    with np.errstate(all="ignore"):
        values, keep = np.exp(logs), there
        rows, middle = np.arange(len(x)), there.sum(axis=1) // 2
        for _ in range(3):
            weight = keep.astype(np.float64)
            curve = _line(x, logs, weight)
            fitted = curve[0][:, None] + curve[1][:, None] * x
            relative = weight * np.exp(-2 * fitted)
            line = _line(x, values, relative)
            off_line = logs - np.log(np.maximum(line[0][:, None] + line[1][:, None] * x, 1e-9))
            off_curve = logs - fitted
            off = np.where(there, np.minimum(np.abs(off_line), np.abs(off_curve)), np.inf)
            scale = np.maximum(1.4826 * np.sort(off, axis=1)[rows, middle], ROUNDING)
            keep = there & (off <= OUTLIER * scale[:, None])
        linear, square_linear = _judge(False, x, values, there, weight, relative, line, off_line)
        exponential, square_exponential = _judge(True, x, logs, there, weight, weight, curve, off_curve)
        evidence = 0.5 * (weight.sum(axis=1) - 3) * np.log(square_linear / square_exponential)
        apart = np.abs(linear.left - exponential.left) / np.minimum(linear.left, exponential.left)
        curved = evidence > 0
        distinct = (evidence >= FOR_CURVE) | (evidence <= -FOR_LINE)
        left = np.where(distinct, np.where(curved, exponential.left, linear.left), (linear.left + exponential.left) / 2)
        trusted = np.where(curved, exponential.trusted & ~settled[:, 1], linear.trusted & ~settled[:, 0])
        return _Trend(
            left,
            np.where(curved, exponential.level, linear.level),
            np.where(curved, exponential.per_step, linear.per_step),
            trusted & (distinct | (apart <= AGREE)),
            np.stack([linear.settled, exponential.settled], axis=1),
        )


def _judge(
    curved: bool,
    x: np.ndarray,
    y: np.ndarray,
    there: np.ndarray,
    kept: np.ndarray,
    weight: np.ndarray,
    line: tuple[np.ndarray, ...],
    off: np.ndarray,
) -> tuple[_Trend, np.ndarray]:
    """What one model says, and the mean square of its residuals."""
    start, slope, mean_x, spread, total = line
    n = kept.sum(axis=1)
    square = np.maximum((kept * off * off).sum(axis=1) / n, ROUNDING**2)
    sigma = np.sqrt(square * n / (n - 2))
    alike = np.clip((kept[:, 1:] * kept[:, :-1] * off[:, 1:] * off[:, :-1]).sum(axis=1) / n / square, 0, 0.99)
    wide = sigma * (1 + 25 / (n - 2) ** 2) * np.sqrt((1 + alike) / (1 - alike))
    level = (start if curved else np.log(start)) + EDGE * sigma
    left = -level / slope if curved else (np.exp(-EDGE * sigma) - start) / slope
    error = wide * np.sqrt(1 / total + (left - mean_x) ** 2 / spread) / slope
    span = -np.where(there, x, 0).min(axis=1)
    late = _line(x, y, weight * (x > -span[:, None] / 2))
    bend, doubt = late[1] / slope, wide / np.sqrt(late[3]) / np.abs(slope)
    trusted = (
        (n >= np.maximum(MIN_POINTS, MIN_KEPT_SHARE * there.sum(axis=1)))
        & (slope > MIN_T * wide / np.sqrt(spread))
        & (bend - doubt > STRAIGHT[0])
        & (bend + doubt < STRAIGHT[1])
        & (level > np.log(FLOOR))
        & (np.median(off[:, -3:], axis=1) > -ON_TREND * sigma)
        & (left > 0)
        & (left <= np.minimum(HORIZON, span * (EXPONENTIAL_REACH if curved else LINEAR_REACH)))
        & (error <= left * np.where(left > LATE, TOLERANCE, TOLERANCE_LATE))
    )
    if curved:
        trusted &= slope * span >= MIN_LOG_GROWTH
        slope = slope * np.exp(start)
    return _Trend(left, level, slope, trusted, (slope > 0) & (bend < STRAIGHT[1])), square
