"""The first thing a page says: how the run stands, the one judgement, and its few numbers. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...judge import metrics
from ...judge.explain import Finding, History
from ...judge.explain.finding import VERDICTS, clock, median
from ...messages import say_in
from ..page.people import UNKNOWN, both, number
from .charts import MEMORY, ZEROS, metric_name

# From what weighs most. A note judges nothing.
WEIGHT = ("wrong", "watch", "undecided", "healthy")
PROBLEMS = ("wrong", "watch", "undecided")
RECENT = 50
TOPIC_NAMES = {
    "overall": "page.topic.overall",
    "outcome": "page.topic.outcome",
    "loss": "page.topic.loss",
    "eval_loss": "page.topic.eval_loss",
    "grad_norm": "page.topic.grad_norm",
    "learning_rate": "page.topic.learning_rate",
    "loss_scale": "page.topic.loss_scale",
    "memory": "page.topic.memory",
    "time": "page.topic.time",
}
"""What a finding is about, in words."""
STATES = {
    "ended": "report.state.ended",
    "stopped": "report.state.stopped",
    "running": "report.state.running",
    "unfinished": "report.state.unfinished",
    "log": "report.state.log",
    "lines": "report.state.lines",
}


@dataclass(frozen=True)
class Best:
    """The best evaluation: the column that says so, where and what it measured."""

    metric: str
    step: int
    value: float

    def say(self, loss: str, other: str, **values: Any) -> dict[str, str]:
        """One sentence of the catalogue for a loss and another, with {metric}, for anything else."""
        if self.metric == "eval_loss":
            return both(loss, **values)
        return {lang: say_in(lang, other, metric=name, **values) for lang, name in metric_name(self.metric).items()}


def status(history: History, findings: Sequence[Finding], following: bool) -> dict[str, Any]:
    """The line on top: state, verdict, its sentence, the best step."""
    leading = gravest(findings)
    said: dict[str, Any] = {"state": stated(history, following)}
    if leading is not None:
        said |= {"verdict": leading.verdict, "word": both(VERDICTS[leading.verdict])}
        said["topic"] = both(TOPIC_NAMES[leading.topic]) if leading.topic != "overall" else None
        said |= {"sentence": {lang: leading.sentence(lang) for lang in said["state"]}}
    best = best_evaluation(history)
    if best is not None:
        said["best"] = best.say("report.best", "report.best_metric", step=number(best.step), value=number(best.value))
    return said


def gravest(findings: Sequence[Finding]) -> Finding | None:
    """What the judgement of all in all points at; itself where nothing is wrong."""
    whole = next((finding for finding in findings if finding.topic == "overall"), None)
    if whole is None or "topic" not in whole.values:
        return whole or worst(findings)
    pointed = (whole.verdict, whole.values["topic"])
    return next((finding for finding in findings if (finding.verdict, finding.topic) == pointed), whole)


def stated(history: History, following: bool) -> dict[str, str]:
    """The state with its step, in words; a log without step numbers counts lines."""
    step = number(float(history.column("step")[-1])) if len(history.steps) else "0"
    word = state(history, following)
    return both(STATES["lines" if word == "log" and not history.numbered else word], step=step)


def state(history: History, following: bool) -> str:
    """ended, stopped, running, unfinished, or log where that is not known."""
    if history.finished:
        return "ended"
    if any(incident["action"] == "stop" for incident in history.incidents):
        return "stopped"
    return "log" if history.kind == "log" else "running" if following else "unfinished"


def worst(findings: Sequence[Finding]) -> Finding | None:
    """The first of those that weigh most."""
    return min((f for f in findings if f.verdict in WEIGHT), key=lambda f: WEIGHT.index(f.verdict), default=None)


def best_evaluation(history: History) -> Best | None:
    """As `judge/metrics.py` chooses it."""
    found = metrics.best_evaluation(history)
    return None if found is None else Best(*found)


def tiles(history: History, findings: Sequence[Finding], following: bool) -> list[dict[str, Any]]:
    """A few numbers; one that the source does not know has no tile."""
    if history.steps.empty:
        return []
    makers = (_loss, _evaluation, _grad_norm, _speed, _memory)
    made = [tile for make in makers if (tile := make(history, findings))]
    return made + [tile for tile in [_time(history, following)] if tile]


def _tile(topic: str, label: str, value: str, findings: Sequence[Finding], note: Any = None) -> dict[str, Any]:
    leading = worst([finding for finding in findings if finding.topic == topic])
    return {"label": both(label), "value": value, "note": note, "verdict": leading.verdict if leading else "note"}


def _loss(history: History, findings: Sequence[Finding]) -> dict[str, Any] | None:
    values = next((f.values for f in findings if f.key in ZEROS), None)
    if values is not None:
        note = both("report.tile.lost_since", step=number(values["step"])) if "step" in values else None
        return _tile("loss", "report.tile.loss", values.get("before", UNKNOWN), findings, note)
    values = next((f.values for f in findings if f.topic == "loss" and {"first", "last"} <= f.values.keys()), None)
    if values is not None:
        note = both("report.tile.from", value=f"{values['first']:.3g}")
        return _tile("loss", "report.tile.loss", f"{values['last']:.3g}", findings, note)
    _, loss = history.finite("loss")
    return _tile("loss", "report.tile.loss", number(float(loss[-1]), 3), findings) if len(loss) else None


def _evaluation(history: History, findings: Sequence[Finding]) -> dict[str, Any] | None:
    best = best_evaluation(history)
    if best is None:
        return None
    note = both("report.tile.best_at", step=number(best.step))
    there = history.evals[history.evals[best.metric].astype("float64") == best.value].iloc[0]
    others = [name for name in metrics.measured(history) if name != best.metric and math.isfinite(there[name])]
    for name in others[:1]:
        label = both("page.metric.eval_loss") if name == "eval_loss" else metric_name(name)
        note = {lang: f"{text} · {label[lang]} {number(float(there[name]), 3)}" for lang, text in note.items()}
    label = best.say("report.tile.eval_loss", "report.tile.best_metric")
    return {**_tile("eval_loss", "report.tile.eval_loss", number(best.value), findings, note), "label": label}


def _grad_norm(history: History, findings: Sequence[Finding]) -> dict[str, Any] | None:
    step, norm = history.finite("grad_norm")
    if not len(norm):
        return None
    most = int(np.argmax(norm))
    note = both("report.tile.worst", value=number(float(norm[most]), 3), step=number(float(step[most])))
    return _tile("grad_norm", "report.tile.grad_norm", f"{median(norm):.3g}", findings, note)


def _speed(history: History, findings: Sequence[Finding]) -> dict[str, Any] | None:
    speed = median(history.column("tokens_per_second"))
    if math.isnan(speed):
        return None
    return _tile("", "report.tile.speed", f"{speed:,.0f}", (), both("report.tile.median"))


def _memory(history: History, findings: Sequence[Finding]) -> dict[str, Any] | None:
    for column in MEMORY:
        values = history.column(column)
        if np.isfinite(values).any():
            note = both("report.tile.host" if column == "host_memory_gib" else "report.tile.gpu")
            return _tile("memory", "report.tile.memory", f"{number(float(np.nanmax(values)), 3)} GiB", findings, note)
    return None


def _time(history: History, following: bool) -> dict[str, Any] | None:
    seconds = history.column("step_seconds")
    if not np.isfinite(seconds).any():
        return _told_time(history)
    stepping, evaluating, saving = history.spent()
    besides = evaluating + saving
    planned, last = _planned(history), float(history.column("step")[-1])
    note = both("report.tile.time_all")
    if following and planned and planned > last and not history.finished:
        left = (planned - last) * median(seconds[-RECENT:]) * (1 + besides / max(stepping, 1e-9))
        note = both("report.tile.eta", time=clock(left), planned=number(planned))
    return _tile("time", "report.tile.time", clock(stepping + besides), (), note)


def _told_time(history: History) -> dict[str, Any] | None:
    """Where steps have no times: what the Trainer's last line says, or the last progress bar with what it expected."""
    spent, note = history.summary.get("train_runtime"), both("report.tile.time_all")
    if not isinstance(spent, (int, float)) and len(history.progress):
        last = history.progress.iloc[-1]
        spent, left = float(last["elapsed_seconds"]), float(last["eta_seconds"])
        if not history.finished and history.planned and math.isfinite(left):
            note = both("report.tile.eta", time=clock(left), planned=number(history.planned))
    if not isinstance(spent, (int, float)) or not math.isfinite(spent):
        return None
    return _tile("time", "report.tile.time", clock(spent), (), note)


def _planned(history: History) -> float | None:
    steps = history.planned or history.number("training.max_steps")
    return float(steps) if steps and steps > 0 else None
