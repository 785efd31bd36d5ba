"""What the rows of the evaluations tell that their means cannot: a change row by row, and rows that were trained on.

Where every row's loss is stored (read/eval_rows.py), two evaluations are held against each other row by row: the spread
from row to row, which hides a change in two means, cancels. From FEW evaluations on the wobble of the means themselves
is known, and evaluation.py decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ....read.eval_rows import EvaluationRows, read_rows, stored_steps
from ....read.history import History
from ...course import SMALL
from ...noise import FEW
from ...paired import UNLIKELY, Paired, paired
from ..finding import Finding, listed
from .evaluation import train_at

# Fewer rows decide nothing.
ENOUGH_ROWS = 10
# Of the evaluation rows, what makes its good news worth little.
TRAINED_ON = 0.05
SHOWN = 3
GOOD_NEWS = ("explain.underfitting", "explain.eval_falling", "explain.eval_fell", "explain.rows_fell")


def paired_evaluations(history: History) -> Finding | None:
    """The last of a few evaluations against the best before it and the first, on the same rows."""
    steps, rows = stored(history)
    return decided(history, steps, rows) if 2 <= len(steps) < FEW else None


def decided(history: History, steps: Sequence[int], rows: Sequence[EvaluationRows]) -> Finding:
    """What evaluations of the same rows at these steps say, held against each other row by row."""
    means = [float(own.loss_sum.sum() / own.weights.sum()) for own in rows]
    best = int(np.argmin(means[:-1])) if np.isfinite(means[:-1]).any() else 0
    # the best of some evaluations lies low by chance
    tried = len(steps) - 1
    rise, fall = _held(rows[best], rows[-1]), _held(rows[0], rows[-1])
    values = {"n": rise.n, "step": steps[best], "best": means[best], "last": means[-1], "last_step": steps[-1]}
    if rise.percent > 100 * SMALL and rise.p * tried < UNLIKELY:
        (then, chance), (now, _) = train_at(history, steps[best]), train_at(history, steps[-1])
        values |= {"percent": rise.percent, "p": rise.p, "worst": _worst(rows[best], rows[-1])}
        values |= {"train_then": then, "train_now": now, "rose": _share_that_rose(rows[best], rows[-1])}
        grave = "wrong" if rise.percent > 10 else "watch"
        if now < then - chance:
            return Finding("eval_loss", grave, "explain.rows_overfit", values)
        risen = now > then + chance
        return Finding("eval_loss", grave, "explain.rows_rose" if risen else "explain.rows_turned", values)
    values |= {"step": steps[0], "best": means[0], "percent": abs(fall.percent), "p": fall.p}
    if fall.verdict == "fell":
        return Finding("eval_loss", "healthy", "explain.rows_fell", values)
    return Finding("eval_loss", "undecided", "explain.rows_same", values)


def stored(history: History) -> tuple[list[int], list[EvaluationRows]]:
    """The stored evaluations that are in the log, where all of them are of the same rows."""
    if history.run is None or not len(history.evals):
        return [], []
    logged = {int(step) for step in history.evals["step"]}
    steps = [step for step in stored_steps(history.run.path) if step in logged]
    read = {step: rows for step in steps if (rows := read_rows(history.run.path, step)) is not None}
    same = len({rows.digest for rows in read.values()}) == 1
    if not same or len(read) < len(logged) or len(next(iter(read.values())).row) < ENOUGH_ROWS:
        return [], []
    return list(read), list(read.values())


def _held(one: EvaluationRows, other: EvaluationRows) -> Paired:
    return paired(one.loss_sum, one.n_tokens, other.loss_sum, other.n_tokens)


def _worst(one: EvaluationRows, other: EvaluationRows) -> str:
    """Source indices of the rows whose loss rose most, in nats over all their tokens."""
    rise = np.nan_to_num(other.loss_sum - one.loss_sum, nan=-np.inf)
    order = np.argsort(-rise, kind="stable")[:SHOWN]
    return listed(other.row[order[rise[order] > 0]])


def _share_that_rose(one: EvaluationRows, other: EvaluationRows) -> float:
    return 100 * float(np.mean(other.loss_sum > one.loss_sum))


def trained_on(history: History) -> Finding | None:
    """Evaluation rows that are training rows: as found before the run, else where both are the same file."""
    found = overlap_of(history)
    if found is not None:
        exact, near, total = found
        if not exact + near:
            return None
        values = {"exact": exact, "near": near, "total": total, "percent": 100 * (exact + near) / total}
        grave = "watch" if values["percent"] >= 100 * TRAINED_ON else "note"
        return Finding("eval_loss", grave, "explain.eval_trained_on", values)
    if not len(history.evals) or not is_same_file(history):
        return None
    return Finding("eval_loss", "watch", "explain.eval_is_train", {"source": history.setting("data.train")})


def overlap_of(history: History) -> tuple[int, int, int] | None:
    """Rows that are the same, that are nearly, and all of them; None where nobody looked."""
    facts = history.env.get("eval_overlap")
    if not isinstance(facts, dict):
        return None
    counts: list[Any] = [facts.get(name) for name in ("exact", "near", "rows")]
    if not all(isinstance(count, int) for count in counts) or not counts[2]:
        return None
    return counts[0], counts[1], counts[2]


def is_same_file(history: History) -> bool:
    held_out = (history.number("data.eval_fraction") or 0) > 0
    return (
        not held_out
        and history.setting("data.eval") is not None
        and history.setting("data.eval") == history.setting("data.train")
    )


def soften(findings: Sequence[Finding]) -> list[Finding]:
    """Good news of an evaluation on rows that were trained on tells what was learned by heart: it becomes a note.

    A loss that rises even there stays what it is.
    """
    if not any(
        f.key in ("explain.eval_trained_on", "explain.eval_is_train") and f.verdict == "watch" for f in findings
    ):
        return list(findings)
    return [
        replace(finding, verdict="note", advises=False)
        if finding.topic == "eval_loss" and (finding.verdict == "healthy" or finding.key in GOOD_NEWS)
        else finding
        for finding in findings
    ]


RULES = (paired_evaluations, trained_on)
