"""The evaluation loss beside the training loss: the only judge of overfitting."""

from __future__ import annotations

import numpy as np

from ...read.history import History
from .finding import WINDOW, Finding, median

# Evaluations of a few dozen rows differ by about a percent when only the seed of the dropout does.
RISE = 0.02
FALLING = 0.01
FEW = 5
TIME_SHARE = 0.2


def missing(history: History) -> Finding | None:
    """Without evaluation nobody can tell learning from knowing by heart."""
    if len(history.evals):
        return None
    return Finding("eval_loss", "watch", "explain.eval_missing_stock" if history.stock else "explain.eval_missing")


def overfitting(history: History) -> Finding | None:
    """The evaluation loss turned while the training loss went on falling."""
    step, loss = _evals(history)
    if len(loss) < 2:
        return None
    best = int(np.argmin(loss))
    train_then, train_now = _train_at(history, step[best]), _train_at(history, step[-1])
    if loss[-1] < (1 + RISE) * loss[best] or not train_now < train_then:
        return None
    values = {"best": loss[best], "step": int(step[best]), "last": loss[-1], "last_step": int(step[-1])}
    values |= {"train_then": train_then, "train_now": train_now, "percent": 100 * (loss[-1] / loss[best] - 1)}
    return Finding("eval_loss", "wrong" if loss[-1] > 1.1 * loss[best] else "watch", "explain.overfitting", values)


def trained_worse(history: History) -> Finding | None:
    """Both rose: it is the training that came off its path, and no overfitting."""
    step, loss = _evals(history)
    if len(loss) < 2:
        return None
    best = int(np.argmin(loss))
    train_then, train_now = _train_at(history, step[best]), _train_at(history, step[-1])
    if loss[-1] < (1 + RISE) * loss[best] or not train_now >= train_then:
        return None
    return Finding(
        "eval_loss", "wrong", "explain.eval_rose", {"best": loss[best], "step": int(step[best]), "last": loss[-1]}
    )


def course(history: History) -> Finding | None:
    """Still falling at the end (more steps would help), or flat (they would not)."""
    step, loss = _evals(history)
    if len(loss) < 2 or loss[-1] >= (1 + RISE) * loss.min():
        return None
    values = {"first": loss[0], "last": loss[-1], "n": len(loss), "step": int(step[-1])}
    if loss[-2] - loss[-1] > FALLING * loss[-2]:
        return Finding("eval_loss", "watch", "explain.underfitting", values)
    return Finding("eval_loss", "healthy", "explain.eval_flat", values)


def gap(history: History) -> Finding | None:
    """How far apart both losses ended."""
    step, loss = _evals(history)
    if not len(loss):
        return None
    train = _train_at(history, step[-1])
    if not np.isfinite(train) or train <= 0:
        return None
    return Finding(
        "eval_loss", "note", "explain.eval_gap", {"eval": loss[-1], "train": train, "ratio": loss[-1] / train}
    )


def too_rare(history: History) -> Finding | None:
    """So few evaluations that a turn would be seen late."""
    _, loss = _evals(history)
    n_steps = int(history.column("step")[-1])
    if not 0 < len(loss) < FEW or n_steps < 10 * FEW:
        return None
    return Finding(
        "eval_loss", "note", "explain.eval_rare", {"n": len(loss), "steps": n_steps, "every": n_steps // (2 * FEW)}
    )


def _evals(history: History) -> tuple[np.ndarray, np.ndarray]:
    step = history.evals["step"].to_numpy("float64")
    loss = history.evals["eval_loss"].astype("float64").to_numpy()
    kept = np.isfinite(loss)
    return step[kept], loss[kept]


def _train_at(history: History, at: float) -> float:
    """The median training loss of the dozen steps that end there."""
    step, loss = history.finite("loss")
    return median(loss[step <= at][-WINDOW:])


RULES = (missing, overfitting, trained_worse, course, gap, too_rare)
