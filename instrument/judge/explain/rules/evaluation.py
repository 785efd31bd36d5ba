"""The evaluation loss beside the training loss, judged against its own wobble (judge/noise.py).

It rose after its lowest stretch: overfitting where the training loss fell meanwhile. It fell and goes on, fell and
settled, or stayed. What cannot be told is `undecided`, with what would tell it. Nothing is said of the end of a run
that has not come to it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ....read.history import History
from ...noise import FEW, Course, judge
from ..finding import WINDOW, Finding, clock, listed, median, scatter

# A turn is seen in time where a run has so many evaluations.
ENOUGH = 5
# Percent. A wobble below this is of no interest to a reader.
WOBBLE = 0.3
# A rise above this share is wrong and not to be watched.
FAR = 0.1
# The wobble shrank with the learning rate: by a half, while the rate fell to a half.
SHRANK = 0.5
# Seconds that more evaluations may cost in all before fewer rows are proposed, and rows that are enough for a turn.
DEAR, ROWS = 300.0, 100
NAMES = ("eval_accuracy", "eval_token_accuracy", "eval_mean_token_accuracy")
# Of these every row is one answer, right or wrong; a row holds many tokens.
BY_ROW = ("eval_accuracy",)


def missing(history: History) -> Finding | None:
    """Without evaluation nobody can tell learning from knowing by heart; before the first one is due nobody need."""
    if len(history.evals) or _due_later(history):
        return None
    return Finding("eval_loss", "note", "explain.eval_missing_stock" if history.stock else "explain.eval_missing")


def _due_later(history: History) -> bool:
    if history.finished:
        return False
    strategy, every = history.setting("training.eval_strategy"), history.number("training.eval_steps")
    if str(strategy) == "epoch":
        return history.epochs is None or history.epochs < 1
    if strategy is not None and str(strategy) != "steps":
        return False
    if every is None:
        every = history.number("training.logging_steps") if strategy is not None else None
    if every is not None and 0 < every < 1:
        every = None if history.planned is None else every * history.planned
    return every is not None and float(history.column("step")[-1]) < every


def nonfinite(history: History) -> Finding | None:
    """Evaluations that are NaN or inf: nothing can be chosen by them."""
    loss = history.evals["eval_loss"].astype("float64").to_numpy()
    # an evaluation that measured something else alone has no loss either: the reader tells them apart
    unread = history.evals["step"].to_numpy("float64")[~np.isfinite(loss)] if history.kind == "run" else ()
    bad = history.nan_evals or tuple(unread)
    if not bad:
        return None
    values = {"n": len(bad), "of": max(len(loss), len(bad)), "steps": listed(bad)}
    train = history.column("loss")
    healthy = np.isfinite(train).any() and np.isfinite(train[-1]) and train[-1] != 0
    return Finding("eval_loss", "wrong", "explain.eval_nan" if healthy else "explain.eval_nan_both", values)


def turned(history: History) -> Finding | None:
    """It rose by more than it wobbles; the training loss tells overfitting from a training that went wrong."""
    step, loss, did = _course(history)
    if did is None or did.kind != "rose":
        return None
    best = int(np.argmin(loss[:-2]))
    at = float(step[best])
    then, chance = train_at(history, at)
    now, _ = train_at(history, step[-1])
    values = {"best": float(loss[best]), "step": int(at), "last": float(loss[-1]), "last_step": int(step[-1])}
    values |= {"train_then": then, "train_now": now, "wobble": did.wobble}
    values["percent"] = _percent(values["best"], values["last"])
    far = did.end > (1 + FAR) * did.low
    if now < then - chance:
        return Finding("eval_loss", "wrong" if far else "watch", "explain.overfitting", values)
    if now > then + chance:
        return Finding("eval_loss", "wrong", "explain.eval_rose", values)
    return Finding("eval_loss", "wrong" if far else "watch", "explain.eval_turned", values)


def course(history: History) -> Finding | None:
    """What it did where it did not rise."""
    step, loss, did = _course(history)
    if did is None or did.kind == "rose":
        return None
    values: dict[str, Any] = {"first": loss[0], "last": loss[-1], "n": len(loss), "step": int(step[-1])}
    values |= {"wobble": did.wobble, "lowest": float(loss.min()), "highest": float(loss.max())}
    live = not history.finished
    if did.kind == "falling":
        if live:
            return Finding("eval_loss", "healthy", "explain.eval_falling", values)
        return Finding("eval_loss", "note", "explain.underfitting", values)
    if did.kind == "settled":
        return Finding("eval_loss", "healthy", "explain.eval_level" if live else "explain.eval_flat", values)
    if did.kind == "fell":
        return Finding("eval_loss", "undecided", "explain.eval_fell", values)
    if did.kind == "flat":
        return Finding("eval_loss", "note", "explain.eval_unmoved", values)
    if did.kind == "last":
        values |= {"percent": _percent(did.low, did.end)}
        return Finding("eval_loss", "undecided", "explain.eval_last_rose", values)
    values |= {"percent": _percent(float(loss.min()), float(loss.max()))}
    return Finding("eval_loss", "undecided", "explain.eval_few", values)


def wobble(history: History) -> Finding | None:
    """How much it wobbles, and why where the log shows it.

    The same rows are evaluated each time, so it is the weights that move, not the rows that differ.
    """
    step, loss, did = _course(history)
    if did is None or len(loss) < FEW or did.wobble < WOBBLE:
        return None
    values: dict[str, Any] = {"wobble": did.wobble, "n": len(loss)}
    fell = did.kind in ("falling", "settled", "fell")  # where it did not, no wobble is the reason
    half = len(loss) // 2
    rate_step, rate = history.finite("learning_rate")
    if half >= 2 * FEW and len(rate):
        rates = np.interp(step, rate_step, rate)
        early, late = (scatter(np.diff(part)) / math.sqrt(2) / median(part) for part in (loss[:half], loss[half:]))
        if median(rates[half:]) < SHRANK * median(rates[:half]) and late < SHRANK * early:
            return Finding(
                "eval_loss", "note", "explain.eval_wobble_rate", values | {"early": 100 * early, "late": 100 * late}
            )
    rows = evaluated_rows(history)
    if rows:
        return Finding("eval_loss", "note", "explain.eval_wobble_rows", values | {"rows": rows}, advises=fell)
    return Finding("eval_loss", "note", "explain.eval_wobble", values, advises=fell)


def gap(history: History) -> Finding | None:
    """How far apart both losses ended."""
    step, loss = evaluations(history)
    if not len(loss):
        return None
    train, _ = train_at(history, step[-1])
    if not np.isfinite(train) or train <= 0:
        return None
    return Finding(
        "eval_loss", "note", "explain.eval_gap", {"eval": loss[-1], "train": train, "ratio": loss[-1] / train}
    )


def too_rare(history: History) -> Finding | None:
    """So few evaluations that a turn would be seen late; where they are dear, fewer rows come first."""
    step, loss = evaluations(history)
    last = int(history.column("step")[-1])
    steps = last if history.finished or history.planned is None else max(history.planned, last)
    expected = len(loss) * steps / max(float(step[-1]), 1.0) if len(loss) else 0
    if not 0 < len(loss) < ENOUGH or expected >= ENOUGH or steps < 10 * ENOUGH:
        return None
    values: dict[str, Any] = {"n": len(loss), "steps": last, "every": steps // (2 * ENOUGH)}
    each, rows = median(_column(history, "eval_runtime")), evaluated_rows(history)
    more = (2 * ENOUGH - expected) * each
    if not np.isfinite(each) or more < DEAR:
        return Finding("eval_loss", "note", "explain.eval_rare", values)
    values |= {"each": clock(each), "more": clock(more), "rows": rows or 0, "limit": ROWS}
    if rows is None or rows < 2 * ROWS:
        return Finding("eval_loss", "note", "explain.eval_rare_slow", values)
    values |= {"rate": rows / each, "less": clock(each * ROWS / rows)}
    return Finding("eval_loss", "note", "explain.eval_rare_dear", values)


def accuracy_course(history: History) -> Finding | None:
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


def accuracy_error(history: History) -> Finding | None:
    """What so many rows can tell of an accuracy."""
    found = _accuracy(history)
    if found is None or not found[2]:
        return None
    _, share, rows, _ = found
    last = min(max(float(share[-1]), 0.5 / rows), 1 - 0.5 / rows)
    values = {"rows": rows, "last": 100 * last, "error": 100 * 2 * math.sqrt(last * (1 - last) / rows)}
    return Finding("eval_loss", "note", "explain.accuracy_error", values)


def accuracy_apart(history: History) -> Finding | None:
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


def evaluations(history: History) -> tuple[np.ndarray, np.ndarray]:
    """Steps and losses of the finite evaluations."""
    step, loss = history.evals["step"].to_numpy("float64"), history.evals["eval_loss"].astype("float64").to_numpy()
    kept = np.isfinite(loss)
    return step[kept], loss[kept]


def evaluated_rows(history: History) -> int | None:
    """Rows of an evaluation: its time times its rows a second; None where the log has not both."""
    product = median(_column(history, "eval_runtime") * _column(history, "eval_samples_per_second"))
    return round(product) if np.isfinite(product) and product >= 1 else None


def _column(history: History, name: str) -> np.ndarray:
    if name not in history.evals:
        return np.full(1, math.nan)
    return history.evals[name].astype("float64").to_numpy()


def _course(history: History) -> tuple[np.ndarray, np.ndarray, Course | None]:
    step, loss = evaluations(history)
    return step, loss, judge(loss) if len(loss) > 1 else None


def _percent(first: float, last: float) -> float:
    return 100 * (last / first - 1) if first else 0.0


def train_at(history: History, at: float) -> tuple[float, float]:
    """The median training loss of the dozen steps that end there, and how far two such differ by chance."""
    step, loss = history.finite("loss")
    own = loss[step <= at][-WINDOW:]
    if not len(own):
        return math.nan, math.nan
    chance = 3 * 1.25 * scatter(np.diff(loss)) / math.sqrt(2) * math.sqrt(2 / len(own)) if len(loss) > 4 else 0.0
    return median(own), chance


RULES = (
    missing, nonfinite, turned, course, wobble, accuracy_course, accuracy_error, accuracy_apart, gap, too_rare,
)  # fmt: skip
