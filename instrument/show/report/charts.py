"""What the charts of a page draw: columns with their names and units, the axes under them, and the marks over them.

An axis is where each step stands, in steps, epochs, tokens so far or minutes so far; the same for each evaluation.
A value that is no value (not finite, or the 0 that a stock log prints for it) is null and a mark. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...judge.explain import Finding, History
from ...judge.explain.rules.loss import stock_zeros
from ...read.schema import STEP_COLUMNS
from ...read.store import read_metrics
from ..page.people import both, number

DIGITS = 7
# Of a cross entropy; what others count in is not known.
LOSS_UNIT = {"causal_lm": "nat/token", "token_cls": "nat/token", "seq_cls": "nat"}
# Of an evaluation: how long it took, and no judgement.
SPEED_COLUMNS = ("step", "epoch", "runtime", "samples_per_second", "steps_per_second", "model_preparation_time")
METRIC_NAMES = {
    "token_accuracy": "page.metric.token_accuracy",
    "mean_token_accuracy": "page.metric.token_accuracy",
    "accuracy": "page.metric.accuracy",
    "f1": "page.metric.f1",
    "entropy": "page.metric.entropy",
}
ZEROS = (
    "explain.zero_no_labels",
    "explain.zero_other",
    "explain.zero_unknown_rate",
    "explain.zero_rate_frozen",
    "explain.zero_rate_moves",
)
"""Findings of zeros that are no losses; one that is rounded (explain.zero_rounded) is."""
AXES = {
    "epoch": ("epoch", "page.axis.epoch"),
    "rows": (None, "page.axis.rows"),
    "tokens": ("tokens", "page.axis.tokens"),
    "time": ("step_seconds", "page.axis.time"),
}
"""Beside steps: the column that says where a step stands, and the axis' name; rows are steps times those of a step."""
CAPTIONS = {
    "lost": "report.caption.lost",
    "dropped": "report.caption.dropped",
    "skipped": "report.caption.skipped",
    "collapse": "report.caption.collapse",
}
"""What a mark of this kind is, under the picture."""
KINDS = {
    "forward_overflow": "collapse.title.forward_overflow",
    "backward_overflow": "collapse.title.backward_overflow",
    "bad_weight": "collapse.title.bad_weight",
    "dead_adapter": "collapse.title.dead_adapter",
    "scale_collapse": "collapse.title.scale_collapse",
    "scale_underflow": "collapse.title.scale_underflow",
    "no_supervised_tokens": "collapse.title.no_supervised_tokens",
    "divergence": "collapse.title.divergence",
}
"""What went wrong, in words."""
SCHEDULE = {"learning_rate": "report.series.learning_rate", "loss_scale": "report.series.loss_scale"}
MEMORY = {
    "memory_reserved_gib": "report.series.memory_reserved_gib",
    "memory_allocated_gib": "report.series.memory_allocated_gib",
    "host_memory_gib": "report.series.host_memory_gib",
}
TIME = {
    "time_steps": "report.series.time_steps",
    "time_evals": "report.series.time_evals",
    "time_saves": "report.series.time_saves",
}


def numbers(values: Any) -> list[float | None]:
    """Floats of DIGITS digits; what is not finite is null."""
    return [_number(value) for value in np.asarray(values, "float64").tolist()]


def _number(value: float) -> float | None:
    if not math.isfinite(value):
        return None
    return int(value) if value == int(value) and abs(value) < 2**53 else float(f"{value:.{DIGITS}g}")


def axes(history: History) -> dict[str, Any]:
    """By axis its name and where steps and evaluations stand on it; step first, then those the source knows."""
    step, at = history.column("step"), history.evals["step"].to_numpy("float64")
    found = {"step": ("page.axis.step" if history.numbered else "page.axis.line", step)}
    for name, (column, label) in AXES.items():
        values = history.column(column) if column else step * rows_of_a_step(history)
        if len(values) and np.isfinite(values).mean() > 0.5:
            sums = values if name in ("epoch", "rows") else np.nancumsum(values)
            found[name] = (label, sums / 60 if name == "time" else sums)
    return {
        name: {
            "label": both(label),
            "steps": numbers(values),
            "evals": numbers(_along(at, step, values)),
        }
        for name, (label, values) in found.items()
    }


def rows_of_a_step(history: History) -> float:
    """Rows of data that a full step takes on all processes; NaN where the source does not say, or packs rows."""
    known = [
        history.number(f"training.{key}") for key in ("per_device_train_batch_size", "gradient_accumulation_steps")
    ]
    processes = history.env.get("processes", 1)
    if history.kind != "run" or not history.numbered or not isinstance(processes, int):
        return math.nan
    if any(value is None or value <= 0 for value in known) or history.setting("data.packing"):
        return math.nan
    return math.prod([value for value in known if value is not None]) * processes


def _along(at: np.ndarray, step: np.ndarray, values: np.ndarray) -> np.ndarray:
    known = np.isfinite(values)
    return np.interp(at, step[known], values[known]) if known.any() else np.full(len(at), np.nan)


def lost_steps(history: History, findings: Sequence[Finding]) -> list[int]:
    """Steps whose loss is no number, whatever the log printed for it."""
    loss = history.column("loss")
    lost = set(history.column("step")[~np.isfinite(loss)].astype(int).tolist()) if np.isfinite(loss).any() else set()
    if any(finding.key in ZEROS for finding in findings):
        lost |= set(stock_zeros(history))
    return sorted(lost)


def series(history: History, lost: Sequence[int]) -> dict[str, list[float | None]]:
    """One list a column that is drawn, null where a step has no number; columns without any are left out."""
    steps = {"step": numbers(history.steps["step"])}
    for name in history.steps.columns:
        if name not in ("step", "start", "updates") and history.steps[name].notna().any():
            steps[name] = numbers(history.steps[name])
    gone = set(lost)
    loss = steps.get("loss", [None] * len(steps["step"]))
    steps["loss"] = [None if step in gone else value for step, value in zip(steps["step"], loss, strict=True)]
    return steps


def attempts(history: History) -> list[dict[str, Any]]:
    """Steps that were run and then run again, after a collapse or a resume: what they gave the first time."""
    starts = history.column("start")
    if history.run is None or not len(starts) or not np.nanmax(np.nan_to_num(starts)) > 0:
        return []
    final = dict(zip(history.column("step").tolist(), np.nan_to_num(starts).tolist(), strict=True))
    rows = read_metrics(history.run.path, every_start=True)
    dropped = [row for row in rows if "loss" in row and row.get("start", 0) < final.get(row.get("step"), -1)]
    return [{"step": row["step"], "loss": row["loss"], "grad_norm": row.get("grad_norm")} for row in dropped]


def marks(history: History, lost: Sequence[int], again: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What stands across a chart of steps: its kind, where on each axis, what it means, and on which (None: all)."""
    step = history.column("step")
    skipped = step[history.column("skipped") > 0].astype(int).tolist()
    broken = sorted({row["step"] for row in again if row["loss"] is None})
    norm = history.column("grad_norm")
    no_norm = step[~np.isfinite(norm)].astype(int).tolist() if np.isfinite(norm).any() else []
    found: list[tuple[str, list[int], dict[str, str], tuple[str, ...] | None]] = [
        ("lost", list(lost), both("report.mark.stock" if history.stock else "report.mark.lost"), ("loss",)),
        ("lost", no_norm, both("report.mark.lost"), ("grad_norm",)),
        ("dropped", broken, both("report.mark.dropped"), ("loss", "grad_norm")),
        ("skipped", skipped, both("report.mark.skipped"), None),
    ]
    for one in history.incidents:
        why, what = kind_of(one), both("report.mark.collapse")
        found.append(("collapse", [one["step"]], {lang: f"{text}: {why[lang]}" for lang, text in what.items()}, None))
    positions = {name: np.asarray(axis["steps"], "float64") for name, axis in axes(history).items()}
    return [
        {
            "kind": kind,
            "at": {name: numbers(_along(np.asarray(steps, float), step, where)) for name, where in positions.items()},
            "text": text,
            "on": on,
        }
        for kind, steps, text, on in found
        if steps and len(step)
    ]


def kind_of(diagnosis: dict[str, Any]) -> dict[str, str]:
    """What went wrong, in words where they are known."""
    kind, dtype = str(diagnosis.get("kind") or ""), diagnosis["evidence"].get("dtype")
    if kind not in KINDS or ("overflow" in kind and not isinstance(dtype, str)):
        return both("page.plain", text=kind)
    return both(KINDS[kind], dtype=dtype)


def eval_metrics(history: History) -> list[str]:
    """What an evaluation measured beside its loss and its speed."""
    kept = [name for name in history.evals.columns if name.startswith("eval_") and name != "eval_loss"]
    kept = [name for name in kept if name.removeprefix("eval_") not in SPEED_COLUMNS]
    return [name for name in kept if np.isfinite(history.evals[name].astype("float64")).any()]


def metric_name(column: str) -> dict[str, str]:
    """An evaluation's own word, or its name without the underscores."""
    name = column.removeprefix("eval_")
    return both(METRIC_NAMES[name]) if name in METRIC_NAMES else _plain(name)


def _plain(text: str) -> dict[str, str]:
    return both("page.plain", text=text.replace("_", " "))


def line(column: str, label: str | dict[str, str], colour: str = "--c1", **more: Any) -> dict[str, Any]:
    """One curve: a column of the steps, or with source="evals" of the evaluations."""
    named = both(label) if isinstance(label, str) else label
    return {"column": column, "label": named, "colour": colour, "source": "steps", **more}


def chart(name: str, title: str | dict[str, str], lines: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """One chart: its lines, the unit of its values, and how it is scaled."""
    return {"id": name, "title": both(title) if isinstance(title, str) else title, "lines": lines, "unit": "", **more}


def training_charts(history: History, steps: dict[str, Any], findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Loss over evaluation, what else evaluations measured, the gradient norm with the finding's own band."""
    loss = [line("loss", "report.series.loss", "--c1")]
    if len(history.evals):
        loss.append(line("eval_loss", "report.series.eval_loss", "--c2", source="evals", points=True))
    found = [chart("loss", "report.loss", loss, unit=LOSS_UNIT.get(history.task, ""), section="loss")]
    for name in eval_metrics(history):
        own = [line(name, metric_name(name), "--c2", source="evals", points=True)]
        found.append(chart(name, metric_name(name), own, section="evals"))
    if "grad_norm" in steps:
        spread = next((f.values for f in findings if f.key == "explain.grad_spread"), None)
        band = spread and {"low": spread["low"], "high": spread["high"], "label": both("report.series.band")}
        own = [line("grad_norm", "report.series.grad_norm")]
        found.append(chart("grad_norm", "report.grad_norm", own, log=True, band=band, section="grad_norm"))
    return found


def schedule_charts(steps: dict[str, Any]) -> list[dict[str, Any]]:
    """Learning rate and loss scale, where they moved."""
    found = []
    for name, label in SCHEDULE.items():
        if len(set(steps.get(name, ()))) > 1:
            log = name == "loss_scale"
            own = [line(name, label, stepped=log)]
            found.append(chart(name, label, own, log=log, zero=not log, section="schedule"))
    return found


def resource_charts(steps: dict[str, Any]) -> list[dict[str, Any]]:
    """Memory with the rows that explain it, speed, and where the time went."""
    found = []
    memory = [name for name in MEMORY if name in steps]
    if memory:
        lines = [line(name, MEMORY[name], f"--c{at + 1}") for at, name in enumerate(memory)]
        if "max_sequence_length" in steps:
            longest = {"right": True, "thin": True, "unit": "tokens"}
            lines.append(line("max_sequence_length", "report.series.longest", "--faint", **longest))
        found.append(chart("memory", "report.memory", lines, unit="GiB", zero=True))
    if "tokens_per_second" in steps:
        own = [line("tokens_per_second", "report.series.tokens_per_second")]
        found.append(chart("throughput", "report.throughput", own, unit="tokens/s", zero=True))
    if "time_steps" in steps:
        spent = [name for name in TIME if name in steps]
        lines = [line(name, TIME[name], f"--c{at + 1}", filled=True) for at, name in enumerate(spent)]
        found.append(chart("time", "report.time", lines[::-1], unit="min", zero=True))
    if "step_seconds" in steps:
        own = [line("step_seconds", "report.step_seconds")]
        found.append(chart("step_seconds", "report.step_seconds", own, unit="s", zero=True))
    return [{**one, "section": "resources"} for one in found]


def stacked_time(steps: dict[str, Any]) -> dict[str, list[float | None]]:
    """Minutes so far: of steps; with evaluations; with checkpoints too. Each only where something was spent."""
    if "step_seconds" not in steps:
        return {}
    total = np.nancumsum(np.asarray(steps["step_seconds"], float)) / 60
    found = {"time_steps": numbers(total)}
    for name, column in (("time_evals", "eval_seconds_total"), ("time_saves", "save_seconds_total")):
        spent = np.nan_to_num(np.asarray(steps.get(column, [0.0] * len(total)), float)) / 60
        total = total + spent
        if spent.any():
            found[name] = numbers(total)
    return found


def other_charts(history: History) -> list[dict[str, Any]]:
    """What a log holds besides: rewards, entropy, KL; under its own words."""
    known = ("start", *STEP_COLUMNS)
    names = [name for name in history.steps.columns if name not in known and history.steps[name].notna().any()]
    return [chart(f"other-{name}", _plain(name), [line(name, _plain(name))], section="other") for name in names]


def captions(drawn: list[dict[str, Any]], found: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, str]]]:
    """By chart what its picture shows, and nothing that it does not show."""
    said: dict[str, list[dict[str, str]]] = {one["id"]: [] for one in drawn}
    for one in found:
        n, first = len(one["at"]["step"]), number(one["at"]["step"][0])
        for name in set(one["on"] or ("loss",)) & said.keys():
            said[name].append(both(CAPTIONS[one["kind"]], n=n, step=first))
    band = next((one["band"] for one in drawn if one.get("band")), None)
    if band:
        said["grad_norm"].append(both("report.band", low=band["low"], high=band["high"]))
    return said
