"""The evaluation loss beside the training loss, judged against its own wobble (judge/course.py).

It rose after its lowest stretch: overfitting where the training loss fell meanwhile. It fell and goes on, fell and
settled, or stayed. What cannot be told is `undecided`, with what would tell it. Nothing is said of the end of a run
that has not come to it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ....read.history import History
from ....read.logs.marks import NO_LOSS
from ...course import Course, judge
from ...noise import FEW
from ..finding import WINDOW, Finding, clock, listed, median, scatter

# Correlation of neighbouring evaluations, until they show their own: a fall leaves few that stay.
ALIKE = 0.4
# A turn is seen in time where a run has so many evaluations.
ENOUGH = 5
# Percent. A wobble below this is of no interest to a reader.
WOBBLE = 0.3
# A rise above this share is wrong and not to be watched.
FAR = 0.1
# The wobble shrank with the learning rate: by a half, while the rate fell to a half.
SHRANK = 0.5
# A rate this far below its peak teaches little more.
SPENT = 0.1
# What settles while the rate is above this share of its peak settles by itself.
LOWERED = 0.5
# Seconds that more evaluations may cost in all before fewer rows are proposed, and rows that are enough for a turn.
DEAR, ROWS = 300.0, 100


def missing(history: History) -> Finding | None:
    """Without evaluation nobody can tell learning from knowing by heart; before the first one is due nobody need."""
    if len(history.evals) or _due_later(history) or history.task == "ppo":
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
        settled = "explain.eval_flat_rate" if _spent(history, step, loss, did) else "explain.eval_flat"
        key = "explain.eval_level" if live else settled
        return Finding("eval_loss", "healthy", key, values)
    if did.kind == "fell":
        return Finding("eval_loss", "undecided", "explain.eval_fell", values)
    if did.kind == "flat":
        return Finding("eval_loss", "note", "explain.eval_unmoved", values)
    if did.kind == "last":
        values |= {"percent": _percent(did.low, did.end)}
        return Finding("eval_loss", "undecided", "explain.eval_last_rose", values)
    values |= {"percent": _percent(float(loss.min()), float(loss.max()))}
    return Finding("eval_loss", "undecided", "explain.eval_few", values)


def _spent(history: History, step: np.ndarray, loss: np.ndarray, did: Course) -> bool:
    """Whether the rate had gone down by the time it settled: then anything does, and what more steps would do is not
    known.
    """
    at, rate = history.finite("learning_rate")
    above = np.flatnonzero(loss > did.end + 2 * did.noise.sigma)
    settled = step[min(int(above[-1]) + 1, len(step) - 1)] if len(above) else step[0]
    lately = rate[at <= settled]
    return len(rate) > 0 and rate[-1] < SPENT * rate.max() and len(lately) > 0 and lately[-1] < LOWERED * rate.max()


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


def evaluations(history: History) -> tuple[np.ndarray, np.ndarray]:
    """Steps and losses of the finite evaluations; none where the loss is near 0 by construction."""
    step, loss = history.evals["step"].to_numpy("float64"), history.evals["eval_loss"].astype("float64").to_numpy()
    kept = np.isfinite(loss) & (history.task not in NO_LOSS)
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
    return step, loss, judge(loss, alike=ALIKE) if len(loss) > 1 else None


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


RULES = (missing, nonfinite, turned, course, wobble, gap, too_rare)
