"""What a stock Trainer's log means once it prints 0.0: the table of design section 6.

logging_nan_inf_filter, on by default, replaces a NaN loss by an average that is 0 after each log; so a loss of exactly
0 is a window in which every loss was not finite, and grad_norm and the learning rate tell the cause apart.
"""

from __future__ import annotations

import math

import numpy as np

from ....read.history import PRINTED, History
from ..finding import Finding, listed, median
from .loss import stock_zeros

# A filtered micro-batch doubles the sum: one is enough for twice the loss, and training alone rarely jumps fourfold.
ARTEFACT = 4.0
# torch's scale starts at 65536 and halves at each skip: sixteen skips search for the scale, more are an illness.
SEARCHING = 16
# So many skipped steps among so many lines: a scale that settles while the gradients grow skips fewer
# (python -m benchmarks.duel --faults 0 --rounds 3 counts false alarms on such runs).
OFTEN, OFTEN_WITHIN = 6, 30
TINY = 1e-7
# A loss that fell below this is printed as 0.0 before long, with four digits.
ROUNDED = 1e-2
# Lines before a collapse; the first skipped update leaves one line with the rate of the one before.
STOOD = 3


def zero(history: History) -> Finding | None:
    """Rows 1, 2, 3 and 6: a loss of exactly 0."""
    zeros = stock_zeros(history)
    if not zeros:
        return None
    step, norm, rate = (history.column(name) for name in ("step", "grad_norm", "learning_rate"))
    at = int(np.flatnonzero(history.column("loss") == 0)[0])
    before = history.column("loss")[:at]
    real = before[np.isfinite(before)]
    values = {"step": zeros[0], "n": len(zeros), "before": f"{real[-1]:.3g}" if len(real) else "-"}
    values |= {"last": int(step[-1]), "rate": float(rate[at])}
    after = norm[at:]
    if np.isfinite(after).all() and np.abs(after).max() < TINY:
        return Finding("loss", "wrong", "explain.zero_no_labels", values)
    if np.isfinite(after).any() and not np.isnan(after).all():
        if at and median(before[-3:]) < ROUNDED and np.isfinite(after).all():
            return Finding("loss", "note", "explain.zero_rounded", values)
        return Finding("loss", "wrong", "explain.zero_other", values)
    if not len(real):
        return Finding("loss", "wrong", "explain.zero_from_start", values)
    if len(after) < 2 or not np.isfinite(rate[at:]).all():
        return Finding("loss", "wrong", "explain.zero_unknown_rate", values)
    if len(np.unique(rate[at:])) > 1:
        return Finding("loss", "wrong", "explain.zero_rate_moves", values)
    stood = _stood_still(rate, at)
    return Finding("loss", "wrong", "explain.zero_unknown_rate" if stood else "explain.zero_rate_frozen", values)


def _stood_still(rate: np.ndarray, at: int) -> bool:
    """Whether the rate was constant before: a constant schedule, with a warm-up or not, tells nothing of skips."""
    return at > 1 and len(np.unique(rate[max(0, at - STOOD) : at + 1])) == 1


def artefact(history: History) -> Finding | None:
    """Row 7: one large loss right before the zeros, made by the filter inside an accumulation window."""
    zeros = stock_zeros(history)
    if not zeros:
        return None
    loss = history.column("loss")
    at = int(np.flatnonzero(loss == 0)[0])
    usual = median(loss[max(0, at - 11) : at - 1]) if at > 2 else math.nan
    if not at or not loss[at - 1] > ARTEFACT * usual:
        return None
    values = {"step": int(history.column("step")[at - 1]), "loss": float(loss[at - 1]), "usual": usual}
    return Finding("loss", "note", "explain.artefact", values)


def other_step(history: History) -> Finding | None:
    """Why the same script fails at step 500 one day and at 1200 the next."""
    zeros = stock_zeros(history)
    return Finding("loss", "note", "explain.other_step_stock", {"step": zeros[0]}) if zeros else None


def never_logged(history: History) -> Finding | None:
    """A loss that is printed as nan or inf: logging_nan_inf_filter is off. To the end, or in some lines."""
    if not history.stock or "loss" not in history.steps.attrs.get(PRINTED, ("loss",)):  # rewards alone, as of PPO
        return None
    lost = ~np.isfinite(history.column("loss"))
    if not lost.any():
        return None
    step, rate = history.column("step"), history.column("learning_rate")
    at = int(np.flatnonzero(lost)[0])
    values = {"n": int(lost.sum()), "steps": listed(step[lost]), "step": int(step[at])}
    if not lost[at:].all() or lost.sum() < 2 or not np.isfinite(rate[at:]).all():
        return Finding("loss", "wrong", "explain.loss_nan", values)
    values["rate"] = float(rate[at])
    if len(np.unique(rate[at:])) > 1:
        return Finding("loss", "wrong", "explain.loss_nan_moves", values)
    unknown = at < 2 or _stood_still(rate, at)
    return Finding("loss", "wrong", "explain.loss_nan_unknown" if unknown else "explain.loss_nan_frozen", values)


def backward_only(history: History) -> Finding | None:
    """Row 4: gradients that are not finite beside a loss that is."""
    if not history.stock:
        return None
    loss, norm = history.column("loss"), history.column("grad_norm")
    if not np.isfinite(norm).any():
        return None
    bad = history.column("step")[np.isfinite(loss) & (loss != 0) & ~np.isfinite(norm)]
    if not len(bad):
        return None
    late = bad[bad > max(SEARCHING, history.coarse * 2)]
    if not len(late):
        return Finding("grad_norm", "healthy", "explain.scale_search", {"n": len(bad), "steps": listed(bad)})
    # a dynamic scale that was raised too far skips a step now and then, and one that began too high settles as the
    # gradients grow: only where they come often is it an illness
    within = OFTEN_WITHIN * history.coarse
    close = [first for first in late if np.sum((late >= first) & (late < first + within)) >= OFTEN]
    values = {"n": len(late), "steps": listed(late), "step": int(close[0] if close else late[0])}
    return Finding("grad_norm", "watch" if close else "note", "explain.backward" if close else "explain.skips", values)


def no_gradient(history: History) -> Finding | None:
    """Row 5: the loss is finite and the gradient is all but 0; LoRA's first step (B = 0) is not meant."""
    step, norm = history.finite("grad_norm")
    loss = history.column("loss")
    norm = norm[step > 1]
    if not history.stock or len(norm) < 3 or np.nanmax(np.abs(norm)) > TINY or not np.nanmax(np.abs(loss)) > 0:
        return None
    return Finding("grad_norm", "wrong", "explain.no_gradient", {"largest": float(np.max(np.abs(norm)))})


RULES = (zero, artefact, other_step, never_logged, backward_only, no_gradient)
