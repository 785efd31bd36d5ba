"""A run folder: what lora-train and InstrumentCallback write."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from ..damaged import parse_own_json, parse_yaml
from ..files import read_own
from ..history import COLUMNS, TASKS, History, SourceError
from ..load import Run
from ..schema import kind_of
from ..store import METRICS, SCHEMA_VERSION, read_metrics
from .log import frame_of, put_evaluation, totals
from .marks import OTHER, has_head, is_other, task_of, trainer_of
from .values import MOST_STEPS, number


def read_run_folder(path: Path) -> History:
    """The history of a run folder.

    Raises:
        SourceError: another version wrote it, or it cannot be read.
    """
    env = _read(path / "env.json", parse_own_json)
    env = env if isinstance(env, dict) else {}
    if (version := env.get("schema_version", SCHEMA_VERSION)) != SCHEMA_VERSION:
        raise SourceError("source.other_schema", path=path, version=version, known=SCHEMA_VERSION)
    try:
        rows = read_metrics(path) if (path / METRICS).exists() else []
    except (OSError, ValueError) as error:
        raise SourceError("source.unreadable", path=path / METRICS, what=error) from error
    evals = [{key: number(value) for key, value in row.items()} for row in rows if kind_of(row) == "evaluation"]
    # null stands for what is not finite; a text was written by nobody
    evals = [row for row in evals if isinstance(row.get("eval_loss"), (float, type(None)))]
    measured: dict[float, dict[str, Any]] = {}
    for row in evals:
        if isinstance(row.get("step"), float):
            put_evaluation(measured, row["step"], row)
    history = History(
        name=str(path),
        kind="run",
        steps=frame_of((row for row in rows if kind_of(row) == "step"), COLUMNS),
        evals=frame_of(measured.values(), ("step", "eval_loss")),
        config=_yaml(path / "config.yaml"),
        env=env,
        incidents=incidents_of(path),
        run=Run(path),
    )
    history.nan_evals = tuple(sorted({int(row["step"]) for row in evals if _lost(row)}))
    summary = next((row for row in reversed(rows) if kind_of(row) == "summary"), None)
    _ending(history, summary)
    _kind(history)
    return history


def _lost(row: dict[str, Any]) -> bool:
    """Whether an evaluation gave a loss that is not finite; one without a loss did not."""
    loss = row.get("eval_loss", 0.0)
    return (
        isinstance(row.get("step"), float) and math.isfinite(row["step"]) and (loss is None or not math.isfinite(loss))
    )


def _ending(history: History, summary: dict[str, Any] | None) -> None:
    history.finished = summary is not None
    history.summary = totals({key: number(value) for key, value in (summary or {}).items()})
    maximum = history.number("training.max_steps") or 0
    history.planned = int(maximum) if 0 < maximum < MOST_STEPS else _by_epochs(history)
    may_stop = history.attached or any(
        history.setting(f"training.{key}") for key in ("early_stopping_patience", "max_hours")
    )
    short = maximum > 0 and history.last_step < maximum
    history.stopped_early = history.finished and may_stop and short


def _by_epochs(history: History) -> int | None:
    """Steps of num_train_epochs, from the steps and epochs that two rows lie apart."""
    epochs = history.number("training.num_train_epochs")
    step, epoch = history.finite("epoch")
    if not epochs or epochs < 0 or len(epoch) < 2 or not epoch[-1] > epoch[0]:
        return None
    planned = epochs * (step[-1] - step[0]) / (epoch[-1] - epoch[0])
    return round(planned) if math.isfinite(planned) else None


def _kind(history: History) -> None:
    """What ours trains its configuration says; a program that carries our callback is told by its keys."""
    if not history.attached:
        task = str(history.setting("model.task", "causal_lm"))
        is_value = "eval_mse" in history.evals or history.setting("model.problem_type") == "regression"
        history.task, history.task_known = "regression" if is_value else task if task in TASKS else "causal_lm", True
        return
    keys = {*history.evals.columns, *(name for name in history.steps if name not in COLUMNS)}
    name, model = (str(history.setting(f"attached.{key}", "")) for key in ("to", "model"))
    history.trainer = trainer_of(keys, name)
    task = task_of(keys, name if has_head(name) else model, history.trainer)
    if is_other(keys, name, bool(history.setting("attached.own_loss"))):
        task = OTHER
    one = history.number("attached.num_labels") == 1  # of which transformers takes the squared error
    if task == "seq_cls" and one and task_of(keys, "", history.trainer) is None:
        task = "regression"
    history.task, history.task_known = task or "causal_lm", task not in (None, OTHER)


def incidents_of(path: Path) -> list[dict[str, Any]]:
    """Every diagnosis.json of a run folder with its folder's name, in order of steps; a torn one is left out."""
    found = []
    for file in sorted(path.glob("incidents/*/diagnosis.json")):
        diagnosis = _read(file, parse_own_json)
        if isinstance(diagnosis, dict) and isinstance(diagnosis.get("step"), int):
            found.append({**_incident(diagnosis), "folder": file.parent.name})
    return sorted(found, key=lambda diagnosis: diagnosis["step"])


def _incident(diagnosis: dict[str, Any]) -> dict[str, Any]:
    """A diagnosis whose parts are of the kinds they should be, whatever wrote it."""
    evidence, remedies = diagnosis.get("evidence"), diagnosis.get("remedies")
    evidence = evidence if isinstance(evidence, dict) else {}
    return {
        **diagnosis,
        "kind": str(diagnosis.get("kind")),
        "action": str(diagnosis.get("action")),
        "rows": _whole(diagnosis.get("rows")),
        "evidence": {**evidence, "rows_alone": _whole(evidence.get("rows_alone"))},
        "remedies": [
            {**remedy, "change": str(remedy["change"])}
            for remedy in (remedies if isinstance(remedies, list) else [])
            if isinstance(remedy, dict) and "change" in remedy
        ],
    }


def _whole(values: Any) -> list[int]:
    return [value for value in values if isinstance(value, int)] if isinstance(values, list) else []


def _yaml(path: Path) -> dict[str, dict[str, Any]]:
    sections = _read(path, parse_yaml)
    if not isinstance(sections, dict):
        return {}
    return {str(name): values for name, values in sections.items() if isinstance(values, dict)}


def _read(path: Path, parse: Callable[[str], Any]) -> Any:
    """None where the file is missing, torn or of another kind: the rest of a run is worth reading."""
    try:
        return parse(read_own(path))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None
