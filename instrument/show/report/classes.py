"""The classes of a classifier's last evaluation: what was taken for what, and the scores of each. Imports no torch.

precision = right / said    recall = right / there are    f1 = 2 right / (said + there are)
"""

from __future__ import annotations

from typing import Any

from ...read.eval_rows import Confusion, read_rows, stored_steps
from ...read.history import History

# A page has room for so many; of more, those with the most mistakes.
SHOWN = 12


def classes(history: History) -> dict[str, Any] | None:
    """Labels, counts and scores at the last evaluation that stored them; None where none did."""
    if history.run is None or not len(history.evals):
        return None
    logged = {int(step) for step in history.evals["step"]}
    for step in reversed(stored_steps(history.run.path)):
        rows = read_rows(history.run.path, step) if step in logged else None
        if rows is not None and rows.confusion is not None:
            return {"step": step, **table(rows.confusion)}
    return None


def table(confusion: Confusion) -> dict[str, Any]:
    """The matrix of at most SHOWN classes, in their order, and the scores of every class."""
    labels, counts = confusion.labels, confusion.counts
    there = [sum(row) for row in counts]
    said = [sum(column) for column in zip(*counts, strict=True)]
    scores = []
    for at, name in enumerate(labels):
        right, own, answered = counts[at][at], there[at], said[at]
        share = (right / answered if answered else None, right / own if own else None)
        f1 = 2 * right / (answered + own) if answered + own else None
        scores.append([name, *share, f1, own])
    mistakes = [there[at] + said[at] - 2 * counts[at][at] for at in range(len(labels))]
    kept = sorted(sorted(range(len(labels)), key=lambda at: (-mistakes[at], at))[:SHOWN])
    return {
        "labels": [labels[at] for at in kept],
        "counts": [[counts[i][j] for j in kept] for i in kept],
        "of": len(labels),
        "scores": scores,
    }
