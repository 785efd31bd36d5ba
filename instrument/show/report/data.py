"""Everything a page shows of a run, as plain values for JSON. Imports no torch."""

from __future__ import annotations

import base64
import math
from datetime import datetime, timezone
from typing import Any

import numpy as np
import pyarrow as pa

from ...judge.explain import TOPICS, Finding, History, explain
from ...judge.explain.finding import VERDICTS
from ...judge.forecast import Forecaster
from ...messages import LANGUAGES, say_in
from ...read.schema import STEP_COLUMNS
from ..page import texts
from .aggregate import GRIDS, aggregate, histograms

# Columns of metrics.jsonl that go to the page beside `step`.
SERIES = tuple(name for name in STEP_COLUMNS if name not in ("step", "updates"))
DIGITS = 7


def report_data(history: History, following: bool = False) -> dict[str, Any]:
    """The data of a report.

    Args:
        history: of the run.
        following: whether the page is written again while the run goes on.
    """
    findings = explain(history)
    return {
        "name": history.name,
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "following": following and not history.finished,
        "text": texts("report."),
        "explanation": {lang: explanation(findings, lang) for lang in LANGUAGES},
        "steps": series(history),
        "evals": {name: numbers(history.evals[name]) for name in history.evals if name in ("step", "eval_loss")},
        "incidents": [incident(history, diagnosis) for diagnosis in history.incidents],
        "layers": layers(history),
        "config": [[f"{s}.{key}", _text(value)] for s, own in history.config.items() for key, value in own.items()],
        "environment": environment(history.env),
        "stock": history.kind != "run",
    }


def explanation(findings: list[Finding], lang: str) -> list[dict[str, Any]]:
    """The findings by topic, in words."""
    groups = []
    for topic in TOPICS:
        own = findings_in([finding for finding in findings if finding.topic == topic], lang)
        if own:
            groups.append({"topic": topic, "what": say_in(lang, TOPICS[topic]), "findings": own})
    return groups


def findings_in(findings: list[Finding], lang: str) -> list[dict[str, Any]]:
    """Each with its verdict and its sentences."""
    return [
        {
            "verdict": finding.verdict,
            "word": say_in(lang, VERDICTS[finding.verdict]).strip(),
            "sentence": finding.sentence(lang),
            "hint": finding.hint(lang),
        }
        for finding in findings
    ]


def series(history: History) -> dict[str, list[float | None]]:
    """One list a column, null where a step has no number; columns without any are left out."""
    steps = {"step": numbers(history.steps["step"])}
    steps |= {name: numbers(history.steps[name]) for name in SERIES if history.steps[name].notna().any()}
    if "loss" not in steps:
        steps["loss"] = [None] * len(steps["step"])
    return steps


def numbers(values: Any) -> list[float | None]:
    """Floats of DIGITS digits; what is not finite is null."""
    return [_number(value) for value in np.asarray(values, "float64").tolist()]


def _number(value: float) -> float | None:
    if not math.isfinite(value):
        return None
    return int(value) if value == int(value) and abs(value) < 2**53 else float(f"{value:.{DIGITS}g}")


def incident(history: History, diagnosis: dict[str, Any]) -> dict[str, Any]:
    """A collapse for its mark and its line in the list."""
    step = diagnosis["step"]
    return {
        "step": step,
        "kind": _text(diagnosis.get("kind")),
        "module": _text(diagnosis.get("module") or ""),
        "rows": ", ".join(map(str, diagnosis["evidence"]["rows_alone"] or diagnosis["rows"])),
        "action": _text(diagnosis.get("action")),
        "remedies": [
            {"change": _text(remedy.get("change")), "verified": bool(remedy.get("verified")), "loss": loss_of(remedy)}
            for remedy in diagnosis.get("remedies", [])
        ],
        "replay": f"lora-train replay {history.name} --step {step}",
    }


def loss_of(remedy: dict[str, Any]) -> float | None:
    """The loss a remedy gave, if it gave one."""
    loss = remedy.get("loss")
    return _number(float(loss)) if isinstance(loss, (int, float)) else None


def layers(history: History) -> dict[str, Any] | None:
    """The grid of sites x bins and the histograms; None where nothing was recorded or it cannot be read."""
    if history.run is None:
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
    except (pa.ArrowException, LookupError, OSError, TypeError, ValueError):  # of another schema, or damaged
        return {"unreadable": True}
    if grid is None:
        return None
    return {
        "names": grid.names,
        "dtypes": [history.dtypes.get(name, "") for name in grid.names],
        "bins": grid.bins.tolist(),
        "grids": {name: base64.b64encode(grid.values[name].tobytes()).decode() for name in GRIDS},
        "forecasts": coming,
        "histograms": [
            {**row, "counts": [base64.b64encode(c.tobytes()).decode() for c in row["counts"]]} for row in rows
        ],
    }


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
        rows += [[f"{key}.{name}".strip("."), _text(item)] for name, item in items]
    return rows


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)
