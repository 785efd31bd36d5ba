"""The courses of all trials of a study as one: where the best step lies in a run, and whether its end still gains.

    y_k(s)   smoothed evaluation of trial k at share s of its run, less its mean      (trial.py)
    y(s)     mean over the K trials; its error is sqrt(sum_k e_k^2) / K
    early    the lowest of y at s <= EARLY, middle, late at s >= LATE; one of them is ahead where it leads the others by
             LEAD sigma and APART errors of a difference
    gain     mean of y just before the last quarter less that of the end

sigma is what two seeds differ by (study.py): a lead of less is worth nothing. A seed moves a course as a whole, and so
not the lead of one part of it over another: LEAD allows for what is not known of sigma, not for luck.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..judge.noise import FEW, noise_of
from ..show.compare.ranking import ASSUMED
from .study import WORTH, Study
from .trial import APART, Trial

# Playbook, "What should I do if the best training step is always ...": the first tenth, the last quarter.
EARLY, LATE = 0.10, 0.75
# Of sigma: between one, which is worth nothing, and three, which has to be found though sigma, measured on a few pairs,
# may come out half too large.
LEAD = 1.4
# Before the last quarter, and the end, whose means are held against each other.
BEFORE, END = (0.60, 0.75), 0.85
# The wobble is that of this part: before, the level itself moves.
HALF = 0.5
# A gain that is surely below this share of sigma is none.
NOTHING = 0.3
# Fewer evaluations than this have no course.
LEAST = FEW
ROUNDING = 1e-9


@dataclass(frozen=True)
class Region:
    """Where the best step lies.

    Attributes:
        where: "early", "middle", "late", or "unclear".
        shares: the first and last share of the run that noise cannot tell from the best.
        best: share of the best step.
    """

    where: str
    shares: tuple[float, float]
    best: float


@dataclass(frozen=True)
class Ending:
    """What the last quarter still brought.

    Attributes:
        kind: "falling", "flat", "rose", "unclear".
        gain: in units of the metric, positive where it still got better.
        error: standard deviation of the gain.
        level: of the metric.
    """

    kind: str
    gain: float
    error: float
    level: float


def usable(study: Study) -> list[Trial]:
    """Finished trials with a course. One that was cut off does not say where its best step would have lain."""
    return [
        trial for trial in study.judged
        if len(trial.evaluations[0]) >= LEAST and trial.horizon > 0 and trial.history.last_step >= 0.98 * trial.horizon
    ]  # fmt: skip


def pooled(trials: list[Trial]) -> tuple[np.ndarray, np.ndarray, float]:
    """Shares, the mean course and its error."""
    n = min(len(trial.evaluations[0]) for trial in trials)
    first = max(trial.evaluations[0][0] / trial.horizon for trial in trials)
    shares = np.linspace(first, 1.0, n)
    courses, errors = [], []
    for trial in trials:
        step, means, error = trial.smoothed
        own = np.interp(shares, step / trial.horizon, means)
        courses.append(own - own.mean())
        errors.append(error)
    return shares, np.mean(courses, axis=0), math.sqrt(float(np.sum(np.square(errors)))) / len(trials)


def region(trials: list[Trial], sigma: float) -> Region:
    """Where the best step of these trials lies."""
    shares, course, error = pooled(trials)
    apart = APART * error * math.sqrt(2)
    kept = shares[course <= course.min() + apart]
    parts = {
        "early": shares <= EARLY + ROUNDING,
        "middle": (shares > EARLY + ROUNDING) & (shares < LATE - ROUNDING),
        "late": shares >= LATE - ROUNDING,
    }
    lowest = {name: float(course[part].min()) for name, part in parts.items() if part.any()}
    first = min(lowest, key=lambda name: lowest[name])
    lead = min((value - lowest[first] for name, value in lowest.items() if name != first), default=0.0)
    clear = lead > LEAD * sigma + apart
    best = float(shares[int(np.argmin(course))])
    return Region(first if clear else "unclear", (float(kept[0]), float(kept[-1])), best)


def contradicts(trial: Trial, where: str) -> bool:
    """Whether noise can tell a trial's own best steps from what all of them say."""
    shares = trial.best_steps / trial.horizon
    if where == "early":
        return bool((shares > EARLY + ROUNDING).all())
    return bool((shares < LATE - ROUNDING).all()) if where == "late" else False


def ending(trials: list[Trial], sigma: float) -> Ending | None:
    """What the last quarter brought to these trials; None where too few evaluations lie there."""
    gains, errors, levels = [], [], []
    for trial in trials:
        step, values = trial.evaluations
        share = step / trial.horizon
        before = values[(share >= BEFORE[0]) & (share <= BEFORE[1] + ROUNDING)]
        end = values[share >= END]
        if len(before) < 2 or len(end) < 2:
            return None
        gains.append(float(before.mean() - end.mean()))
        noise = noise_of(values[share >= HALF], ASSUMED)
        errors.append(noise.sigma * math.sqrt(1 / len(before) + 1 / len(end)) * noise.inflation)
        levels.append(abs(float(end.mean())))
    gain, error = float(np.mean(gains)), math.sqrt(float(np.sum(np.square(errors)))) / len(gains)
    kind = "falling" if gain - 2 * error > WORTH * sigma / 2 else "unclear"
    if abs(gain) + 2 * error < NOTHING * sigma:
        kind = "flat"
    elif -gain - 2 * error > WORTH * sigma / 2:
        kind = "rose"
    return Ending(kind, gain, error, float(np.mean(levels)))
