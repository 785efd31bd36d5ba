"""Foresees fp16 overflow: the trend of each site's absmax gives the step at which it meets the limit.

    linear         y(t) = a + b t          left = (limit exp(-q) - a) / b
    exponential    ln y(t) = a + g t       left = (ln limit - q - a) / g

t counts steps from the present one. Residuals are those of ln y, sigma is their deviation, and q = EDGE sigma: the
upper edge of the scatter gets there before its middle. Windows of the last observations are fitted, longest first, by
least squares without outliers. A model speaks when its rival fits clearly worse or says nearly the same, when the
window is straight under it up to now, and when the standard error of `left` is small; for that sigma is widened where
points are few (Student's t) or neighbouring residuals are alike. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..constants import FP16_MAX

# Observations kept of each site: with +-5% of noise 256 give the slope of 20000 + 110 a step to 2%, 128 only to 5%.
KEPT = 256
# The shortest sees +5% a step double.
WINDOWS = (256, 128, 64, 32, 16)
# Three points always look straight enough.
MIN_POINTS = 4
# Steps between two looks, and sites at one look, in turn: they bound the cost.
FIT_EVERY, AT_ONCE = 2, 32
# 1/32 of the limit, from where +5% a step takes 71 steps. What warms up below is not about to overflow.
FLOOR = -np.log(32.0)
# In steps; what is further off changes its course before it arrives.
HORIZON = 200.0
# `left` over the steps seen. Growth towards 3/4 of the limit bends visibly before a line reaches this far; +5% a step
# from 3000 has shown 13 steps when 50 are left, and must have grown by half by then.
LINE_REACH, CURVE_REACH, CURVE_GROWTH = 0.7, 5.0, 0.4
# Standard error of `left` over `left`: a third of the 20% that a warning may be off. In the last 100 steps a rough
# warning is better than none (a probed site has few points).
TOLERANCE, TOLERANCE_LATE, LATE = 0.06, 0.2, 100.0
# Slope over its standard error: over a thousand sites and thousands of steps 5 comes up by chance.
MIN_T = 8.0
# Share of the variance that a window's trend explains before it is worth a fit; outliers of x3 take more than half.
WORTH_A_FIT = 0.2
# Slope of a half of the window over that of the whole: saturation falls below, a drift that began inside rises above.
STRAIGHT = (0.8, 1.33)
# The last three points' median lies this many sigma below the trend by chance in 1% of cases; else growth has ended.
ON_TREND = 1.5
# ln of the likelihood ratio at which one model is believed. Mistaking a line for a curve sounds the alarm hundreds of
# steps early, and a window is looked at dozens of times. The window without its first quarter must still say `curve`:
# a line that began inside looks like one.
FOR_CURVE, FOR_LINE, STILL_CURVE = 6.0, 2.0, 1.0
# Or how close their `left` must be; the mean of the two is then within half of it.
AGREE = 0.2
# Residuals beyond five robust deviations are outliers; more than 15% of them are not.
OUTLIER, MIN_SHARE = 5.0, 0.85
# Uniform noise first crosses where trend + 1.2 sigma does, normal noise at 1.5.
EDGE = 1.3
# ln: a sawtooth comes back to where it was; a drift goes 15% beyond.
NEWS = 0.15
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
        limit: the magnitude to stay below.
    """

    def __init__(self, n_sites: int, limit: float = FP16_MAX):
        self._limit = limit
        self._logs = np.zeros((n_sites, KEPT))  # ln(absmax / limit)
        self._steps = np.zeros((n_sites, KEPT))
        self._seen = np.zeros(n_sites, dtype=np.int64)  # observations so far; modulo KEPT the slot of the next one
        self._held = np.zeros(n_sites, dtype=np.int64)
        self._fresh = np.zeros(n_sites, dtype=bool)
        self._warned = np.zeros(n_sites, dtype=bool)
        self._last_step = self._last_look = -FIT_EVERY
        self._turn = 0

    def update(self, step: int, absmax: np.ndarray) -> list[Forecast]:
        """Takes a step's values. A step at or before the last one replaces what was seen from there on.

        Args:
            step: attempted optimizer step.
            absmax: float64 [n_sites], NaN where a site was not observed.

        Returns:
            A forecast for each site whose overflow came into sight, once per site.
        """
        if step <= self._last_step:
            self._forget(step)
        self._last_step = step
        sites = np.flatnonzero(np.isfinite(absmax) & (absmax > 0))
        slots = self._seen[sites] % KEPT
        self._logs[sites, slots] = np.log(absmax[sites] / self._limit)
        self._steps[sites, slots] = step
        self._seen[sites] += 1
        self._held[sites] = np.minimum(self._held[sites] + 1, KEPT)
        self._fresh[sites] = True
        if step - self._last_look < FIT_EVERY:
            return []
        self._last_look = step
        candidates = self._candidates()
        self._fresh[:] = False
        return self._look(step, candidates) if len(candidates) else []

    def _forget(self, step: int) -> None:
        age = (self._seen[:, None] - 1 - np.arange(KEPT)) % KEPT
        dropped = ((self._steps >= step) & (age < self._held[:, None])).sum(axis=1)
        self._seen -= dropped
        self._held -= dropped
        self._last_look = min(self._last_look, step - 1)

    def _candidates(self) -> np.ndarray:
        """Sites that could be within reach, AT_ONCE in turn: what rose little is not, far from the limit."""
        sites = np.flatnonzero(self._fresh & ~self._warned & (self._held >= MIN_POINTS))
        now = np.median(self._logs[sites[:, None], (self._seen[sites, None] - np.arange(1, 4)) % KEPT], axis=1)
        sites, now = sites[now > FLOOR], now[now > FLOOR]
        # every eighth slot is enough to see the rise; one that was never written holds 0, the limit
        rise = now - self._logs[sites, ::8].min(axis=1)
        sites = sites[-now <= CURVE_REACH * rise + NEWS]
        sites = np.roll(sites, -np.searchsorted(sites, self._turn))[:AT_ONCE]
        self._turn = sites[-1] + 1 if len(sites) else 0
        return sites

    def _look(self, step: int, sites: np.ndarray) -> list[Forecast]:
        found: list[Forecast] = []
        held, back = self._held[sites], np.arange(KEPT, 0, -1)
        slots = (self._seen[sites, None] - back) % KEPT  # oldest first
        x, logs = self._steps[sites[:, None], slots] - step, self._logs[sites[:, None], slots]
        there = back <= held[:, None]
        steady = np.zeros((len(sites), 2), dtype=bool)
        for size, shorter in zip(WINDOWS, (*WINDOWS[1:], 0), strict=True):
            rows = np.flatnonzero((held > shorter) & ~self._warned[sites])
            rows = rows[_rises(x[rows, -size:], logs[rows, -size:], there[rows, -size:])]
            if not len(rows):
                continue
            whole = held <= min(size, KEPT - 1)
            trend = _fit(x[rows, -size:], logs[rows, -size:], there[rows, -size:], steady[rows], whole[rows])
            steady[rows] |= trend.steady
            for k in np.flatnonzero(trend.trusted):
                older = logs[rows[k], :-size][there[rows[k], :-size]]
                if len(older) and trend.level[k] < np.quantile(older, 0.9) + NEWS:
                    continue
                site, predicted = int(sites[rows[k]]), step + int(np.ceil(trend.left[k]))
                peak, per_step = float(np.exp(trend.level[k])) * self._limit, float(trend.slope[k]) * self._limit
                found.append(Forecast(site, step, peak, self._limit, per_step, predicted))
                self._warned[site] = True
        return found


@dataclass
class _Trend:
    """What windows [k] say: steps left, ln(upper edge / limit) now, limits per step now, whether to believe it.

    `steady` is true where the window goes on as it did or flattens: no shorter one is to be asked then. [k] of one
    model, [k, 2] of both.
    """

    left: np.ndarray
    level: np.ndarray
    slope: np.ndarray
    trusted: np.ndarray
    steady: np.ndarray


@dataclass
class _Line:
    """Weighted least squares on windows [k, w]: value at x=0, slope, mean and sum of squares of x, weight; all [k]."""

    start: np.ndarray
    slope: np.ndarray
    mean_x: np.ndarray
    spread: np.ndarray
    total: np.ndarray

    @classmethod
    def fit(cls, x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> _Line:
        total = weight.sum(axis=1)
        mean_x = _dot(weight, x) / total
        moment = weight * (x - mean_x[:, None])
        spread = _dot(moment, x)
        slope = _dot(moment, y) / spread
        return cls(_dot(weight, y) / total - slope * mean_x, slope, mean_x, spread, total)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.start[:, None] + self.slope[:, None] * x


@dataclass
class _Model:
    """A model on windows [k, w]: what its line was fitted to and with which weights, and the residuals of ln y."""

    line: _Line
    y: np.ndarray
    weight: np.ndarray
    off: np.ndarray


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("kw,kw->k", a, b)


def _rises(x: np.ndarray, logs: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Which windows climb by more than chance, outliers and all."""
    with np.errstate(all="ignore"):
        weight = there.astype(np.float64)
        line = _Line.fit(x, logs, weight)
        centred = weight * (logs - (_dot(weight, logs) / line.total)[:, None])
        explained = line.slope**2 * line.spread / _dot(centred, centred)
        return (line.slope > 0) & (explained > np.maximum(WORTH_A_FIT, 32 / (64 + line.total)))


def _models(x: np.ndarray, logs: np.ndarray, kept: np.ndarray) -> tuple[_Model, _Model]:
    """The linear and the exponential model, both for noise in proportion to y."""
    curve = _Line.fit(x, logs, kept)
    fitted, values = curve(x), np.exp(logs)
    relative = kept * np.exp(-2 * fitted)
    line = _Line.fit(x, values, relative)
    off_line = logs - np.log(np.maximum(line(x), 1e-9))
    return _Model(line, values, relative, off_line), _Model(curve, logs, kept, logs - fitted)


def _mean_square(model: _Model, kept: np.ndarray) -> np.ndarray:
    return np.maximum(_dot(kept, model.off**2) / kept.sum(axis=1), ROUNDING**2)


def _for_curve(line: _Model, curve: _Model, kept: np.ndarray) -> np.ndarray:
    """ln of the likelihood ratio in favour of the exponential model, short of what so few points give by chance."""
    return 0.5 * (kept.sum(axis=1) - 3) * np.log(_mean_square(line, kept) / _mean_square(curve, kept))


def _fit(x: np.ndarray, logs: np.ndarray, there: np.ndarray, steady: np.ndarray, whole: np.ndarray) -> _Trend:
    """Fits both models to windows [k, w] and takes the better one.

    `steady` [k, 2] are the models not to be asked; `whole` [k] are the windows with all that was ever seen.
    """
    with np.errstate(all="ignore"):
        rows, middle = np.arange(len(x)), there.sum(axis=1) // 2
        kept = there.astype(np.float64)
        line, curve = _models(x, logs, kept)
        for _ in range(2):
            off = np.where(there, np.minimum(np.abs(line.off), np.abs(curve.off)), np.inf)
            deviation = np.maximum(1.4826 * np.sort(off, axis=1)[rows, middle], ROUNDING)
            kept = (off <= OUTLIER * deviation[:, None]).astype(np.float64)
            line, curve = _models(x, logs, kept)
        span = -np.where(there, x, 0).min(axis=1)
        evidence = _for_curve(line, curve, kept)
        later = kept * (x >= -0.75 * span[:, None])
        still = _for_curve(*_models(x, logs, later), later)
        linear, exponential = _judge(line, x, there, kept, span, False), _judge(curve, x, there, kept, span, True)
        curved = evidence > 0
        distinct = (evidence >= FOR_CURVE) & (whole | (still >= STILL_CURVE)) | (evidence <= -FOR_LINE)
        left = np.where(curved, exponential.left, linear.left)
        apart = np.abs(linear.left - exponential.left) / np.minimum(linear.left, exponential.left)
        trusted = np.where(curved, exponential.trusted & ~steady[:, 1], linear.trusted & ~steady[:, 0])
        return _Trend(
            np.where(distinct, left, (linear.left + exponential.left) / 2),
            np.where(curved, exponential.level, linear.level),
            np.where(curved, exponential.slope, linear.slope),
            trusted & (distinct | (apart <= AGREE)),
            np.stack([linear.steady, exponential.steady], axis=1),
        )


def _judge(model: _Model, x: np.ndarray, there: np.ndarray, kept: np.ndarray, span: np.ndarray, curved: bool) -> _Trend:
    """What one model says, and whether its window bears it out."""
    line, off, n = model.line, model.off, kept.sum(axis=1)
    square = _mean_square(model, kept)
    sigma = np.sqrt(square * n / (n - 2))
    alike = np.clip(_dot(kept[:, 1:] * off[:, 1:], kept[:, :-1] * off[:, :-1]) / n / square, 0, 0.99)
    # 1 + 25/dof^2 is the 99.9% point of Student's t over the normal one
    wide = sigma * (1 + 25 / (n - 2) ** 2) * np.sqrt((1 + alike) / (1 - alike))
    level = (line.start if curved else np.log(line.start)) + EDGE * sigma
    left = -level / line.slope if curved else (np.exp(-EDGE * sigma) - line.start) / line.slope
    error = wide * np.sqrt(1 / line.total + (left - line.mean_x) ** 2 / line.spread) / line.slope
    recent = x > -span[:, None] / 2
    early, late = (_Line.fit(x, model.y, model.weight * half) for half in (~recent, recent))
    bend, doubt = late.slope / line.slope, wide / np.sqrt(late.spread) / np.abs(line.slope)
    trusted = (
        (n >= np.maximum(MIN_POINTS, MIN_SHARE * there.sum(axis=1)))
        & (line.slope > MIN_T * wide / np.sqrt(line.spread))
        & (alike < 3 / np.sqrt(n))
        & (bend - doubt > STRAIGHT[0])
        & (bend + doubt < STRAIGHT[1])
        & (early.slope / line.slope + doubt > STRAIGHT[0])
        & (np.median(off[:, -3:], axis=1) > -ON_TREND * sigma)
        & (level > FLOOR)
        & (left > 0)
        & (left <= np.minimum(HORIZON, span * (CURVE_REACH if curved else LINE_REACH)))
        & (error <= left * np.where(left > LATE, TOLERANCE, TOLERANCE_LATE))
    )
    steady = (line.slope > 0) & (bend < STRAIGHT[1])
    if curved:
        return _Trend(
            left, level, line.slope * np.exp(line.start), trusted & (line.slope * span >= CURVE_GROWTH), steady
        )
    return _Trend(left, level, line.slope, trusted, steady)
