"""What the page of a comparison shows: every run's lines on the same axes, and what differs. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ...judge.explain import Finding, History, explain
from ...judge.explain.rules.norms import micro_batches
from ...messages import LANGUAGES
from ..page import texts
from ..page.people import both, number, run_name, without_paths
from ..report.charts import LOSS_UNIT, axes, eval_metrics, lost_steps, marks, metric_name, numbers, series
from ..report.data import findings_in
from ..report.overview import Best, best_evaluation, stated

if TYPE_CHECKING:
    from . import Comparison

SCRIPTS = ("compare.js",)
# Columns of the steps that are worth a look beside the loss: name, its word, unit, whether the scale is logarithmic.
COLUMNS = (
    ("grad_norm", "report.grad_norm", "", True),
    ("learning_rate", "report.series.learning_rate", "", False),
    ("loss_scale", "report.series.loss_scale", "", True),
    ("tokens_per_second", "report.throughput", "tokens/s", False),
    ("step_seconds", "report.step_seconds", "s", False),
    ("max_sequence_length", "report.series.longest", "tokens", False),
    ("memory_reserved_gib", "report.series.memory_reserved_gib", "GiB", False),
    ("host_memory_gib", "report.series.host_memory_gib", "GiB", False),
)


def comparison_data(comparison: Comparison) -> dict[str, Any]:
    """The data of the page of a comparison."""
    named = [replace(history, name=run_name(history.name)) for history in comparison.histories]
    runs = [_run(history, explain(history)) | {"foretold": foretold(history, named)} for history in named]
    told = {
        "names": comparison.names,
        "differing": [[difference.key, *difference.values] for difference in comparison.differing],
        "findings": {lang: findings_in(comparison.findings, lang) for lang in LANGUAGES},
        "table": [_row(history, run) for history, run in zip(named, runs, strict=True)],
    }
    return {
        **without_paths(told),
        "made": round(time.time() * 1000),
        "text": texts("compare.page."),
        "runs": runs,
        "metrics": metrics(named),
    }


def _run(history: History, findings: Sequence[Finding]) -> dict[str, Any]:
    """One run's columns, axes and marks."""
    wanted = {"step", "loss", *(name for name, *_ in COLUMNS)}
    lost = lost_steps(history, findings)
    evals = ("step", "eval_loss", *eval_metrics(history))
    return {
        "name": history.name,
        "axes": axes(history),
        "steps": {name: values for name, values in series(history, lost).items() if name in wanted},
        "evals": {name: numbers(history.evals[name].astype("float64")) for name in evals},
        "marks": marks(history, lost, ()),
    }


def foretold(history: History, histories: Sequence[History]) -> list[dict[str, Any]]:
    """The run's gradient norm if its steps had the rows of another's, over its course, where its own rows tell it:
    `of` (that run's number), `rows`, `at` (places in `steps`), `y`.
    """
    micro = micro_batches(history)
    if micro is None or not micro.is_seen:
        return []
    place = {int(step): at for at, step in enumerate(history.column("step"))}
    found = []
    for number_of, other in enumerate(histories):
        rows = int(other.rows_per_step) if other.rows_per_step.isdigit() else 0
        same = other.rows_per_step == history.rows_per_step  # the last step of an epoch has fewer than the others
        if other is not history and not same and rows > 0 and rows != micro.rows and micro.is_told(rows):
            steps, norms = micro.course(rows)
            at = [place[int(step)] for step in steps]
            found.append({"of": number_of, "rows": rows, "at": at, "y": numbers(norms)})
    return found


def _row(history: History, run: dict[str, Any]) -> dict[str, Any]:
    best, loss = best_evaluation(history), [value for value in run["steps"]["loss"] if value is not None]
    return {
        "state": stated(history, False),
        "last": number(loss[-1] if loss else None),
        "best": best and best.say("compare.page.best_at", "compare.page.best_metric", **_at(best)),
    }


def _at(best: Best) -> dict[str, str]:
    return {"step": number(best.step), "value": number(best.value)}


def metrics(histories: Sequence[History]) -> list[dict[str, Any]]:
    """What can be overlaid: the loss of training and evaluation, what evaluations measured, columns of the steps."""
    unit = {LOSS_UNIT.get(history.task, "") for history in histories}
    loss = {"unit": unit.pop() if len(unit) == 1 else "", "log": False}
    found = [{"id": "loss", "label": both("compare.page.loss"), "steps": "loss", "evals": "eval_loss", **loss}]
    for name in dict.fromkeys(name for history in histories for name in eval_metrics(history)):
        found.append({"id": name, "label": metric_name(name), "steps": None, "evals": name, "unit": "", "log": False})
    for name, label, unit_of, log in COLUMNS:
        if any(np.isfinite(history.column(name)).any() for history in histories):
            found.append({"id": name, "label": both(label), "steps": name, "evals": None, "unit": unit_of, "log": log})
    return found
