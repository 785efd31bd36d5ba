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
WINDOWS = (256, 192, 128, 96, 64, 48, 32, 24, 16, 12)
# A line through three points always looks straight enough.
MIN_POINTS = 4
# Looking at four steps' news at once divides the cost by four and costs at most three steps of lead.
FIT_EVERY = 4
# 1/32 of the limit: +5% a step takes 71 steps from there. Below it, warm-up looks like a drift and no one needs to act.
FLOOR = 1 / 32
# In steps; what is further off changes its course before it arrives.
HORIZON = 200.0
# A line is trusted for as long as it was seen, so that growth that saturates bends within the window. Exponential
# growth is trusted four times as long, after 1.5x: +5% a step from 3000 has shown 13 steps when 50 are left.
LINEAR_REACH, EXPONENTIAL_REACH = 0.75, 5.0
MIN_LOG_GROWTH = 0.4
# Standard error of `left`, as a share of it: a third of the 20% that a warning may be off. With less than 80 steps
# left the time to act matters more (a probed site has few points).
TOLERANCE, TOLERANCE_LATE, LATE = 0.06, 0.12, 80.0
# Slope over its standard error; over a thousand sites and thousands of steps, 5 comes up by chance.
MIN_T = 8.0
SLOW_T = 4.0
# Slope of the later half over that of the whole window: a kink or saturation leaves this range.
STRAIGHT = (0.75, 1.33)
# ln of the likelihood ratio of the two models (e^3: 20 to 1), or how close their `left` must be.
DISTINCT = 5.0
AGREE = 0.15
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

    def _window(self, sites: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Steps, logs and whether there is one, of the last `size` observations: [sites, size], oldest first."""
        back = np.arange(size, 0, -1)
        slots = (self._next[sites, None] - back) % KEPT
        return self._steps[sites[:, None], slots], self._logs[sites[:, None], slots], back <= self._held[sites, None]

    def _search(self, step: int, sites: np.ndarray) -> list[Forecast]:
        found: list[Forecast] = []
        slowing = np.zeros((2, len(self._held)), dtype=bool)
        for size, shorter in zip(WINDOWS, (*WINDOWS[1:], 0), strict=True):
            within = sites[self._held[sites] > shorter] if shorter else sites
            if not len(within):
                continue
            steps, logs, there = self._window(within, size)
            left, level, slope, slows = _fit(steps - step, logs, there, slowing[:, within])
            slowing[:, within] |= slows
            for i in np.flatnonzero(np.isfinite(left)):
                site = int(within[i])
                _, older, real = self._window(within[i : i + 1], KEPT)
                older = older[:, : KEPT - size][real[:, : KEPT - size]]
                # a sawtooth comes back to where it was; a drift goes where the site has not been
                if len(older) and np.quantile(older, 0.9) > level[i]:
                    continue
                peak, per_step = float(np.exp(level[i])) * self._limit, float(slope[i]) * self._limit
                found.append(Forecast(site, step, peak, self._limit, per_step, step + int(np.ceil(left[i]))))
                self._warned[site] = True
            sites = sites[~self._warned[sites]]
        return found


def _line(x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, ...]:
    """Weighted least squares along the last axis: value at x=0, slope, mean of x, sum of squares of x, weight."""
    total = weight.sum(axis=1)
    mean_x, mean_y = (weight * x).sum(axis=1) / total, (weight * y).sum(axis=1) / total
    dx = x - mean_x[:, None]
    spread = (weight * dx * dx).sum(axis=1)
    slope = (weight * dx * y).sum(axis=1) / np.maximum(spread, 1e-300)
    return mean_y - slope * mean_x, slope, mean_x, spread, total


def _fit(x: np.ndarray, logs: np.ndarray, there: np.ndarray, slowing: np.ndarray) -> tuple[np.ndarray, ...]:
    """Both models on windows [k, w].

    Returns:
        Steps left (NaN where no model is to be trusted), ln of the upper edge at present, slope in limits per step.
    """
    with np.errstate(all="ignore"):
        values = np.exp(logs)
        keep = there
        for _ in range(3):
            weight = keep.astype(np.float64)
            exponential = _line(x, logs, weight)
            fitted = exponential[0][:, None] + exponential[1][:, None] * x
            relative = weight * np.exp(-2 * fitted)
            linear = _line(x, values, relative)
            line = linear[0][:, None] + linear[1][:, None] * x
            residuals = (logs - np.log(np.maximum(line, 1e-9)), logs - fitted)
            best = np.where(there, np.minimum(np.abs(residuals[0]), np.abs(residuals[1])), np.nan)
            scale = np.maximum(1.4826 * np.nanmedian(best, axis=1), ROUNDING)
            keep = there & (best <= OUTLIER * scale[:, None])
        n = weight.sum(axis=1)
        enough = (n >= MIN_POINTS) & (n >= MIN_KEPT_SHARE * there.sum(axis=1))
        span = -np.where(there, x, 0).min(axis=1)
        squares = [np.maximum((weight * r * r).sum(axis=1) / n, ROUNDING**2) for r in residuals]
        evidence = 0.5 * n * np.log(squares[0] / squares[1])  # positive for the exponential model
        half = weight * (x > -span[:, None] / 2)
        results = []
        for kind, (fit, y, w, r, square) in enumerate(
            zip((linear, exponential), (values, logs), (relative, weight), residuals, squares, strict=True)
        ):
            start, slope, mean_x, spread, total = fit
            pairs = (weight[:, 1:] * weight[:, :-1] * r[:, 1:] * r[:, :-1]).sum(axis=1) / n / square
            pairs = np.clip(pairs, 0, 0.99)
            sigma = np.sqrt(square * n / (n - 2))
            wide = sigma * (1 + 25 / (n - 2) ** 2) * np.sqrt((1 + pairs) / (1 - pairs))
            level = start + EDGE * sigma if kind else np.log(start) + EDGE * sigma
            left = -level / slope if kind else (np.exp(-EDGE * sigma) - start) / slope
            error = wide * np.sqrt(1 / total + (left - mean_x) ** 2 / spread) / slope
            bend = _line(x, y, half * (w / np.maximum(weight, 1e-300)))[1] / slope
            trusted = enough & (left > 0) & (left <= HORIZON) & (slope > MIN_T * wide / np.sqrt(spread))
            trusted &= error <= np.where(left > LATE, TOLERANCE, TOLERANCE_LATE) * left
            trusted &= (bend > STRAIGHT[0]) & (bend < STRAIGHT[1]) & (level > np.log(FLOOR))
            trusted &= left <= (EXPONENTIAL_REACH if kind else LINEAR_REACH) * span
            slows = (slope > 0) & (slope > SLOW_T * wide / np.sqrt(spread)) & (bend < STRAIGHT[0])
            trusted &= ~slowing[kind]
            if kind:
                trusted &= slope * span >= MIN_LOG_GROWTH
                slope = slope * np.exp(start)
            results.append((left, level, slope, trusted, slows))
        lin, exp = results
        same = np.abs(lin[0] - exp[0]) <= AGREE * np.minimum(lin[0], exp[0])
        pick = evidence > 0
        left, level, slope, trusted = (np.where(pick, e, l) for l, e in zip(lin[:4], exp[:4], strict=True))
        trusted = trusted.astype(bool) & (same | (np.abs(evidence) >= DISTINCT))
        return np.where(trusted, left, np.nan), level, slope, np.stack([lin[4], exp[4]])
