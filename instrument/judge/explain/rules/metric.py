"""The metric a run is chosen by, beside its loss: accuracy, F1, a correlation; what it did, and why both may disagree.

A share of right answers scatters at least as counting so many rows does. Where the rows of evaluations are stored with
their answers (read/eval_rows.py), errors and confidence are told apart row by row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ....read.eval_rows import EvaluationRows
from ....read.history import History
from ...course import Course, judge
from ...metrics import BY_TASK, DECIDES, lower_is_better, measured, named
from ...paired import paired
from ..finding import Finding
from ..reconcile import BY_LOSS, BY_METRIC, CHOICE, MOVES
from .evaluation import ALIKE, evaluated_rows, evaluations
from .rows import stored

TOKENS = ("eval_token_accuracy", "eval_mean_token_accuracy")
# Of this every row is one answer, right or wrong; a row holds many tokens.
BY_ROW = "eval_accuracy"
# Errors that rose by less than this share of the rows are no more errors.
NO_MORE = 0.01


@dataclass(frozen=True)
class Measured:
    """The metric that decides.

    Attributes:
        name: as logged, `eval_f1`.
        step, value: of its finite evaluations.
        rows: of an answer each; 0 where unknown, or where a row is not one answer.
        did: what it did, upside down where more of it is better.
        up: whether more of it is better.
    """

    name: str
    step: np.ndarray
    value: np.ndarray
    rows: int
    did: Course
    up: bool

    def text(self, value: float) -> str:
        return f"{100 * value:.1f}%" if "accuracy" in self.name else f"{value:.3f}"


def course(history: History) -> Finding | None:
    """Where it rose to, whether it still does, or whether it came down again."""
    found = _decides(history)
    if found is None:
        return None
    did, value, sign = found.did, found.value, -1 if found.up else 1
    best = int(np.argmin(sign * value))
    values: dict[str, Any] = {"first": found.text(sign * did.low), "last": found.text(sign * did.end)}
    values |= {"best": found.text(value[best]), "step": int(found.step[best]), "n": len(value), "metric": found.name}
    kind, verdict = _ending(history, did)
    if kind == "few":  # nothing is known of a course: these are the evaluations themselves
        values |= {"first": found.text(value[0]), "last": found.text(value[-1])}
    if did.kind == "rose":
        values |= {"step": int(found.step[did.at]), "best": found.text(sign * did.low)}
    which = "accuracy" if "accuracy" in found.name else "metric" if found.up else "lower"
    return Finding("eval_loss", verdict, SENTENCES[which, kind], values)


# fmt: off
SENTENCES = {
    ("accuracy", "worse"): "explain.accuracy_fell", ("accuracy", "better"): "explain.accuracy_rises",
    ("accuracy", "ended"): "explain.accuracy_rose", ("accuracy", "level"): "explain.accuracy_level",
    ("accuracy", "few"): "explain.accuracy_few",
    ("metric", "worse"): "explain.metric_fell", ("metric", "better"): "explain.metric_rises",
    ("metric", "ended"): "explain.metric_rose", ("metric", "level"): "explain.metric_level",
    ("metric", "few"): "explain.metric_few",
    ("lower", "worse"): "explain.lower_rose", ("lower", "better"): "explain.lower_falls",
    ("lower", "ended"): "explain.lower_fell", ("lower", "level"): "explain.metric_level",
    ("lower", "few"): "explain.metric_few",
}
# fmt: on


def _ending(history: History, did: Course) -> tuple[str, str]:
    """What it did, of SENTENCES, and its verdict."""
    if did.kind == "rose":
        return "worse", "watch"
    if did.kind == "falling" or (did.kind == "fell" and not history.finished):
        return "better", "healthy"
    if did.kind in ("settled", "fell"):
        return "ended", "healthy"
    return ("level", "note") if did.kind == "flat" else ("few", "undecided")


def error(history: History) -> Finding | None:
    """What so many rows can tell of an accuracy."""
    found = _decides(history)
    if found is None or not found.rows:
        return None
    last = min(max(float(found.value[-1]), 0.5 / found.rows), 1 - 0.5 / found.rows)
    values = {"rows": found.rows, "last": 100 * last, "error": 100 * 2 * math.sqrt(last * (1 - last) / found.rows)}
    return Finding("eval_loss", "note", "explain.accuracy_error", values)


def apart(history: History) -> Finding | None:
    """The loss turned and the metric did not, or the other way round; with the rows, why."""
    found = _decides(history)
    _, loss = evaluations(history)
    if found is None or not found.up or len(loss) < 2:
        return None
    surer = confidence(history)
    if surer is not None and found.did.kind != "rose":
        return surer
    loss_rose, fell = judge(loss, alike=ALIKE).kind == "rose", found.did.kind == "rose"
    if loss_rose == fell:
        return None
    if "accuracy" in found.name:
        key = "explain.loss_turned_alone" if loss_rose else "explain.accuracy_turned_alone"
        return Finding("eval_loss", "note", key)
    key = "explain.loss_without_metric" if loss_rose else "explain.metric_without_loss"
    return Finding("eval_loss", "note", key, {"metric": found.name})


def confidence(history: History) -> Finding | None:
    """Confidence, not errors: row by row the loss rose from its best evaluation to the last, the errors did not.

    Said only where the interval of the errors' change excludes a rise of NO_MORE, and where the loss of rows that were
    wrong both times rose.
    """
    steps, rows = stored(history)
    if len(rows) < 2 or any(own.n_correct is None or (own.n_tokens != 1).any() for own in rows):
        return None
    means = [float(own.loss_sum.mean()) for own in rows]
    if not np.isfinite(means).all():
        return None
    best = int(np.argmin(means[:-1]))
    then, now = rows[best], rows[-1]
    wrong, still = _wrong(then), _wrong(now)
    n, both = len(wrong), wrong & still
    change = float(still.mean() - wrong.mean())
    reach = 2 * math.sqrt(float(np.sum(wrong != still)) + 1) / n
    of_all = paired(then.loss_sum, then.n_tokens, now.loss_sum, now.n_tokens)
    of_wrong = paired(then.loss_sum[both], then.n_tokens[both], now.loss_sum[both], now.n_tokens[both])
    if change + reach > NO_MORE or of_all.verdict != "rose" or of_wrong.verdict != "rose":
        return None
    values = {"n": n, "step": steps[best], "last_step": steps[-1], "wrong": int(wrong.sum()), "still": int(still.sum())}
    values |= {"low": 100 * (change - reach), "high": 100 * (change + reach), "both": int(both.sum())}
    values |= {"then": float(then.loss_sum[both].mean()), "now": float(now.loss_sum[both].mean())}
    return Finding("eval_loss", "note", "explain.confidence", values)


def _wrong(rows: EvaluationRows) -> np.ndarray:
    assert rows.n_correct is not None
    return np.asarray(rows.n_correct) == 0


def chosen(history: History, findings: Sequence[Finding]) -> list[Finding]:
    """The findings, the checkpoint recommended by the metric that the run names and by nothing else.

    Where it names one, advice to go by the other keeps its fact alone; where the loss turned the metric's is said.
    """
    name = named(history, measured(history))
    if name is None:
        return list(findings)
    other = BY_METRIC if name.endswith("loss") else BY_LOSS
    kept = [replace(f, advises=False) if MOVES.get(f.key, {}).get(CHOICE) == other else f for f in findings]
    found = _decides(history)
    turned = any(MOVES.get(f.key, {}).get(CHOICE) == BY_LOSS for f in findings)
    if other == BY_METRIC or not turned or found is None or found.did.kind == "rose":
        return kept
    step, loss = evaluations(history)
    best = int(np.argmin(-found.value if found.up else found.value))
    values = {
        "metric": name.removeprefix("eval_"),
        "step": int(found.step[best]),
        "best": found.text(found.value[best]),
    }
    values["loss_step"] = int(step[np.argmin(loss)])
    return [*kept, Finding("eval_loss", "note", "explain.choice_metric", values)]


def _decides(history: History) -> Measured | None:
    """The metric the run names, else the one that its kind of training is judged by; None without any but the loss."""
    known = measured(history)
    chosen = named(history, known)
    usual = [name for name in BY_TASK.get(history.task, (*DECIDES, *TOKENS)) if name in known]
    name = chosen if chosen is not None and not chosen.endswith("loss") else next(iter(usual), None)
    if name is None:
        return None
    value = history.evals[name].astype("float64").to_numpy()
    kept = np.isfinite(value)
    if name in (*DECIDES, *TOKENS):  # shares
        kept &= (value >= 0) & (value <= 1)
    if kept.sum() < 2:
        return None
    step, value = history.evals["step"].to_numpy("float64")[kept], value[kept]
    rows = (evaluated_rows(history) or 0) if name == BY_ROW else 0
    usually = float(np.median(value))
    sigma = math.sqrt(max(usually * (1 - usually), 0.25 / rows) / rows) if rows else 0.0
    up = not lower_is_better(name, history)
    return Measured(name, step, value, rows, judge(-value if up else value, sigma=sigma), up)


RULES = (course, error, apart)
