"""What an evaluation costs, what its rates mean, and why an ETA grew."""

from __future__ import annotations

import numpy as np

from ....read.history import History
from ..finding import Finding, clock, median
from .evaluation import evaluated_rows

# Of the estimate at first; bars are off by as much.
GREW = 0.05
# Of the growth of an ETA, what may be left when evaluations explain it.
NEAR = 0.25
LONG_EVALUATION = 600.0
ENOUGH_ROWS = 100


def evaluation(history: History) -> Finding | None:
    """Rows, rows a second and batches a second of an evaluation, as the Trainer logs them."""
    seconds, rate, steps = (
        _eval(history, f"eval_{name}") for name in ("runtime", "samples_per_second", "steps_per_second")
    )
    if not len(seconds) or not len(rate) or not median(rate) > 0:
        return None
    each, rows = median(seconds), evaluated_rows(history) or 0
    values = {"time": clock(each), "rows": rows, "rate": median(rate), "n": len(seconds)}
    if len(steps) and median(steps) > 0:
        values |= {"steps": median(steps), "batch": max(1, round(median(rate) / median(steps)))}
        return Finding("time", "note", "explain.eval_speed", values)
    return Finding("time", "note", "explain.eval_speed_rows", values)


def costly(history: History) -> Finding | None:
    """An evaluation of more than ten minutes: fewer rows tell nearly as much."""
    seconds, rate = _eval(history, "eval_runtime"), _eval(history, "eval_samples_per_second")
    if not len(seconds) or not len(rate) or median(seconds) < LONG_EVALUATION:
        return None
    rows = evaluated_rows(history) or 0
    if rows <= ENOUGH_ROWS:
        return None
    saved = median(seconds) * (1 - ENOUGH_ROWS / rows)
    values = {"time": clock(median(seconds)), "rows": rows, "few": ENOUGH_ROWS, "saved": clock(saved)}
    values |= {"error": np.sqrt(rows / ENOUGH_ROWS), "total": clock(float(np.nansum(seconds)))}
    return Finding("time", "watch", "explain.eval_costly", values)


def eta(history: History) -> Finding | None:
    """The whole time as the progress bar foresaw it, at first and at last, and whether evaluations explain it."""
    bar = getattr(history, "progress", None)
    if bar is None or len(bar) < 6:
        return None
    total = (bar["elapsed_seconds"] + bar["eta_seconds"]).to_numpy("float64")
    k = max(1, len(total) // 10)
    first, last = median(total[k : 2 * k + 1]), median(total[-k:])
    if not last > (1 + GREW) * first:
        return None
    values = {"first": clock(first), "last": clock(last)}
    steps = bar["step"].to_numpy("float64")
    seconds = _eval(history, "eval_runtime")
    if len(seconds):
        whole = float(history.planned or steps[-1])
        every = median(np.diff(history.evals["step"].to_numpy("float64"), prepend=0.0))
        spent = median(seconds) * max(len(seconds), whole // every if every > 0 else 0)
        if spent > (1 - NEAR) * (last - first):
            values |= {"n": len(seconds), "each": clock(median(seconds))}
            return Finding("time", "note", "explain.eta_eval", values)
    return Finding("time", "note", "explain.eta_grew", values)


def throughput(history: History) -> Finding | None:
    """Tokens a second, where the log has them."""
    rates = history.column("tokens_per_second")
    if not np.isfinite(rates).any() or not history.stock:
        return None
    return Finding("time", "note", "explain.throughput", {"rate": median(rates)})


def _eval(history: History, name: str) -> np.ndarray:
    if name not in history.evals:
        return np.empty(0)
    values = history.evals[name].astype("float64").to_numpy()
    return values[np.isfinite(values)]


RULES = (evaluation, costly, eta, throughput)
