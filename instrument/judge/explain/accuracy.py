"""Accuracy beside the loss: a share of correct answers, whose error by counting is known.

    sigma = sqrt(p (1 - p) / rows)     rows = eval_runtime x eval_samples_per_second

It is judged like the evaluation loss, upside down. The two need not agree: the loss counts how sure the model is of the
right answer, the accuracy only how often it is its first choice.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..noise import Course, judge
from .evaluation import evaluated_rows, evaluations
from .finding import Finding
from .history import History

NAMES = ("eval_accuracy", "eval_token_accuracy", "eval_mean_token_accuracy")
# Of these every row is one answer, right or wrong; a row holds many tokens.
BY_ROW = ("eval_accuracy",)


def course(history: History) -> Finding | None:
    """Where it rose to, whether it still does, or whether it came down again."""
    found = _accuracy(history)
    if found is None:
        return None
    step, share, rows, did = found
    best = int(np.argmax(share))
    values: dict[str, Any] = {"first": 100 * -did.low, "last": 100 * -did.end, "n": len(share)}
    values |= {"best": 100 * share[best], "step": int(step[best]), "error": 100 * 2 * did.noise.sigma, "rows": rows}
    if did.kind == "rose":
        values |= {"step": int(step[did.at]), "best": 100 * -did.low}
        return Finding("eval_loss", "watch", "explain.accuracy_fell", values)
    if did.kind == "falling" or (did.kind == "fell" and not history.finished):
        return Finding("eval_loss", "healthy", "explain.accuracy_rises", values)
    if did.kind in ("settled", "fell"):
        return Finding("eval_loss", "healthy", "explain.accuracy_rose", values)
    if did.kind == "flat":
        return Finding("eval_loss", "note", "explain.accuracy_level", values)
    return Finding("eval_loss", "undecided", "explain.accuracy_few", values)


def error(history: History) -> Finding | None:
    """What so many rows can tell of an accuracy."""
    found = _accuracy(history)
    if found is None or not found[2]:
        return None
    _, share, rows, _ = found
    last = min(max(float(share[-1]), 0.5 / rows), 1 - 0.5 / rows)
    values = {"rows": rows, "last": 100 * last, "error": 100 * 2 * math.sqrt(last * (1 - last) / rows)}
    return Finding("eval_loss", "note", "explain.accuracy_error", values)


def apart(history: History) -> Finding | None:
    """The loss turned and the accuracy did not, or the other way round."""
    found = _accuracy(history)
    _, loss = evaluations(history)
    if found is None or len(loss) < 2:
        return None
    loss_rose, share_fell = judge(loss).kind == "rose", found[3].kind == "rose"
    if loss_rose == share_fell:
        return None
    return Finding("eval_loss", "note", "explain.loss_turned_alone" if loss_rose else "explain.accuracy_turned_alone")


def _accuracy(history: History) -> tuple[np.ndarray, np.ndarray, int, Course] | None:
    """Steps, shares, rows of an answer each (0 where unknown) and what they did, upside down."""
    name = next((name for name in NAMES if name in history.evals), None)
    if name is None:
        return None
    share = history.evals[name].astype("float64").to_numpy()
    kept = np.isfinite(share) & (share >= 0) & (share <= 1)
    if kept.sum() < 2:
        return None
    step, share = history.evals["step"].to_numpy("float64")[kept], share[kept]
    rows = (evaluated_rows(history) or 0) if name in BY_ROW else 0
    usual = float(np.median(share))
    sigma = math.sqrt(max(usual * (1 - usual), 0.25 / rows) / rows) if rows else 0.0
    return step, share, rows, judge(-share, sigma=sigma)


RULES = (course, error, apart)
