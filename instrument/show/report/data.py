"""Everything a page shows of a run, as plain values for JSON. Imports no torch."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...judge.explain import TOPICS, Finding, History, advised, explain
from ...judge.explain.finding import VERDICTS
from ...judge.forecast import Forecaster
from ...judge.row_score import Texts
from ...judge.wording import DESCRIBED, OURS, lines_of
from ...messages import LANGUAGES, say_in
from ...read.damaged import damage
from ..page import texts as sentences
from ..page.people import run_name, setting, without_paths
from .aggregate import GRIDS, aggregate, histograms
from .charts import (
    attempts,
    axes,
    captions,
    kind_of,
    lost_steps,
    marks,
    numbers,
    other_charts,
    resource_charts,
    schedule_charts,
    series,
    stacked_time,
    training_charts,
)
from .classes import classes
from .overview import PROBLEMS, TOPIC_NAMES, state, status, tiles
from .rows import training_rows

REMEDIES = {
    "rollback": "report.remedy.rollback",
    "precision.loss_scale": "report.remedy.loss_scale",
    "precision.min_loss_scale": "report.remedy.loss_scale",
    "precision.fp32_modules": "report.remedy.fp32_module",
    "data.skip_rows": "report.remedy.skip_rows",
    "training.learning_rate": "report.remedy.learning_rate",
    "model.attn_implementation": "report.remedy.sdpa",
}
"""What a remedy changes, in words."""
_LAYER = re.compile(r"^(.*?)\.(\d+)\.(.+)$")


def report_data(
    history: History, following: bool = False, layered: bool = True, texts: Texts | None = None
) -> dict[str, Any]:
    """The data of a report.

    Args:
        history: of the run.
        following: whether the run goes on.
        layered: whether the grids of the layers and the training rows are wanted, which take longest.
        texts: of the training rows, for a page that is to show them.
    """
    history = replace(history, name=run_name(history.name))
    findings = explain(history)
    drawing = drawn(history, findings)
    told = {
        "name": history.name,
        "status": status(history, findings, following),
        "state": state(history, following),
        "tiles": tiles(history, findings, following),
        "problems": {lang: explanation(history, _of(findings, True), lang) for lang in LANGUAGES},
        "explanation": {lang: explanation(history, _of(findings, False), lang) for lang in LANGUAGES},
        "incidents": [incident(history, diagnosis) for diagnosis in history.incidents],
        "config": [[f"{s}.{key}", setting(value)] for s, own in history.config.items() for key, value in own.items()],
        "environment": environment(history.env),
    }
    if not history.numbered:
        told, drawing = counted_in_lines(told), counted_in_lines(drawing)
    grids = {"layers": layers(history), "rows": training_rows(history, texts)} if layered else {}
    return {
        **without_paths(told),
        "made": round(time.time() * 1000),
        "following": following and not history.finished,
        "text": sentences("report."),
        **drawing,
        **grids,
        "classes": classes(history),
    }


def counted_in_lines(value: Any, lang: str = "") -> Any:
    """The same, what is said in a language counting the lines of a log that does not number its steps."""
    if isinstance(value, str):
        return lines_of(value, lang) if lang else value
    if isinstance(value, dict):
        said = set(value) == set(LANGUAGES)
        return {key: counted_in_lines(item, key if said else lang) for key, item in value.items()}
    return [counted_in_lines(item, lang) for item in value] if isinstance(value, (list, tuple)) else value


def drawn(history: History, findings: Sequence[Finding]) -> dict[str, Any]:
    """Charts, the columns they need, and what stands under and over them."""
    if history.steps.empty:
        lists: dict[str, list[Any]] = {"attempts": [], "marks": [], "charts": []}
        return {"axes": {}, "steps": {"step": []}, "evals": {}, "captions": {}, **lists}
    lost = lost_steps(history, findings)
    steps, again = series(history, lost), attempts(history)
    steps |= stacked_time(steps)
    over = marks(history, lost, again)
    shown = [
        *training_charts(history, steps, findings),
        *other_charts(history),
        *schedule_charts(steps),
        *resource_charts(steps),
    ]
    needed = {"step", *(line["column"] for one in shown for line in one["lines"])}
    evals = {name: numbers(history.evals[name].astype("float64")) for name in history.evals if name in needed}
    return {
        "axes": axes(history),
        "steps": {name: values for name, values in steps.items() if name in needed},
        "evals": evals,
        "attempts": again,
        "marks": over,
        "charts": shown,
        "captions": captions(shown, over),
    }


def _of(findings: Sequence[Finding], problems: bool) -> list[Finding]:
    """The problems, or the rest; what is said of all of them stands above."""
    kept = [finding for finding in findings if finding.topic != "overall"]
    return [finding for finding in kept if (finding.verdict in PROBLEMS) == problems]


def explanation(history: History, findings: list[Finding], lang: str) -> list[dict[str, Any]]:
    """The findings by topic, in the words and with the keys of those who trained it."""
    groups, described, trainer = [], DESCRIBED.get(history.task, {}), advised(history)
    for topic in TOPICS:
        own = findings_in([finding for finding in findings if finding.topic == topic], lang, trainer)
        if own:
            what = say_in(lang, described.get(topic, TOPICS[topic]))
            groups.append({"topic": say_in(lang, TOPIC_NAMES[topic]), "what": what, "findings": own})
    return groups


def findings_in(findings: list[Finding], lang: str, trainer: str = OURS) -> list[dict[str, Any]]:
    """Each with its verdict and its sentences."""
    return [
        {
            "verdict": finding.verdict,
            "word": say_in(lang, VERDICTS[finding.verdict]).strip(),
            "sentence": finding.sentence(lang),
            "hint": finding.hint(lang, trainer),
        }
        for finding in findings
    ]


def incident(history: History, diagnosis: dict[str, Any]) -> dict[str, Any]:
    """A collapse for its card: where, which rows, and what was tried in which order."""
    step = diagnosis["step"]
    tried = [remedy_of(remedy) for remedy in diagnosis.get("remedies", [])]
    if diagnosis.get("action") in ("heal", "rollback"):
        for remedy in tried:
            if remedy["outcome"] == "worked":
                remedy["outcome"] = "taken"
                break
    return {
        "step": step,
        "kind": kind_of(diagnosis),
        "module": _text(diagnosis.get("module") or ""),
        "rows": ", ".join(map(str, diagnosis["evidence"]["rows_alone"] or diagnosis["rows"])),
        "action": _text(diagnosis.get("action")),
        "remedies": tried,
        "replay": f"lora-train replay {history.name} --step {step}",
    }


def remedy_of(remedy: dict[str, Any]) -> dict[str, Any]:
    """What was changed and what it did: failed (not finite again), costly (finite, but something was lost), worked."""
    loss = remedy.get("loss")
    known = numbers([loss])[0] if isinstance(loss, (int, float)) else None
    outcome = "worked" if remedy.get("verified") else "failed" if known is None else "costly"
    change = _text(remedy.get("change"))
    keys = [REMEDIES[key] for part in change.split() if (key := part.partition("=")[0]) in REMEDIES]
    words = {lang: ", ".join(say_in(lang, key) for key in keys) for lang in LANGUAGES}
    return {"change": change, "words": words, "loss": known, "outcome": outcome}


def layers(history: History) -> dict[str, Any] | None:
    """The grid of sites x bins and the histograms; None where nothing was recorded or it cannot be read."""
    if history.run is None or history.steps.empty:
        return None
    steps = history.column("step").astype(np.int64)
    starts = history.column("start")
    scales = np.where(np.isnan(history.column("loss_scale")), 1.0, history.column("loss_scale"))
    by_step = {(int(s), int(t)): float(x) for s, t, x in zip(np.nan_to_num(starts), steps, scales, strict=True)}
    try:
        outputs = [name for name, dtype in history.dtypes.items() if dtype == "float16" and name.endswith(":out")]
        grid = aggregate(history.run, steps, by_step, outputs)
        rows = histograms(history.run, grid) if grid else []
        coming = forecasts(outputs, steps, grid.peaks) if grid else []
    except damage():  # of another schema, or damaged
        return {"unreadable": True}
    if grid is None:
        return None
    return {
        "names": grid.names,
        "dtypes": [history.dtypes.get(name, "") for name in grid.names],
        **model_of(grid.names),
        "bins": grid.bins.tolist(),
        "grids": encoded(grid.values),
        "forecasts": coming,
        "histogram_every": history.number("instrument.histogram_every"),
        "histograms": [
            {**row, "counts": [base64.b64encode(c.tobytes()).decode() for c in row["counts"]]} for row in rows
        ],
    }


def model_of(names: Sequence[str]) -> dict[str, Any]:
    """Where each site stands in the model: its layer, its projection, its tensor, as places in three lists.

    model.layers.3.self_attn.q_proj:lora_B.grad is layer 3, projection self_attn.q_proj; a module outside of the
    layers is a projection of the layer "". Where there are several stacks, a layer's name begins with its own.
    """
    rows: dict[tuple[str, str], int] = {}
    columns, tensors, places = {}, {}, []
    for name in names:
        module, _, tensor = name.rpartition(":")
        found = _LAYER.match(module)
        stack, layer, projection = found.groups() if found else ("", "", module)
        own = (rows.setdefault((stack, layer), len(rows)), columns.setdefault(projection, len(columns)))
        places.append([*own, tensors.setdefault(tensor, len(tensors))])
    several = len({stack for stack, layer in rows if layer}) > 1
    named = [f"{stack} {layer}" if several and layer else layer for stack, layer in rows]
    return {"rows": named, "columns": list(columns), "tensors": list(tensors), "places": places}


def encoded(values: dict[str, np.ndarray]) -> dict[str, Any]:
    """float32 as base64; a grid that is the same as an earlier one is that one's name, one without values is null."""
    found: dict[str, Any] = {}
    for name in GRIDS:
        same = next((n for n in found if np.array_equal(values[n], values[name], equal_nan=True)), None)
        text = base64.b64encode(values[name].tobytes()).decode()
        found[name] = {"as": same} if same else None if np.isnan(values[name]).all() else {"base64": text}
    return found


def forecasts(sites: list[str], steps: np.ndarray, peaks: np.ndarray) -> list[dict[str, Any]]:
    """What the run warned of: the outputs whose trend met the largest fp16 number, as they were seen then.

    Args:
        sites: float16 outputs.
        peaks: their absmax, float64 [steps, sites].
    """
    forecaster = Forecaster(len(sites))
    found = []
    for step, row in zip(steps.tolist(), peaks, strict=True):
        for coming in forecaster.update(step, row) if sites else ():
            facts = {"step": step, "peak": coming.peak, "predicted_step": coming.predicted_step}
            found.append({"site": sites[coming.site], **facts})
    return found


def environment(env: dict[str, Any]) -> list[list[str]]:
    """env.json as rows of a table."""
    rows = []
    for key, value in env.items():
        items = value.items() if isinstance(value, dict) else [("", value)]
        rows += [[f"{key}.{name}".strip("."), setting(item)] for name, item in items]
    return rows


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)
