"""JSON: trainer_state.json of every transformers since 4.0, a list of records, a table by columns, a notebook."""

from __future__ import annotations

import math
import re
from typing import Any

from ..damaged import parse_foreign_json
from .log import Log
from .values import MOST_STEPS, Record, canonical, flat, is_known, is_summary, number

SETTINGS = {
    "logging_steps": "logging_steps",
    "eval_steps": "eval_steps",
    "save_steps": "save_steps",
    "train_batch_size": "per_device_train_batch_size",
    "num_train_epochs": "num_train_epochs",
}


def parse_json(text: str) -> Any:
    """The value of a JSON text, NaN and Infinity included; None of anything else."""
    if text[:1] not in "[{":
        return None
    try:
        return parse_foreign_json(text)
    except (ValueError, RecursionError):
        return None


def read_state(state: dict[str, Any]) -> Log | None:
    """The log of a trainer_state.json; None of another mapping."""
    history = state.get("log_history")
    if not isinstance(history, list):
        return None
    log = Log([canonical(flat(record)) for record in history if isinstance(record, dict)])
    reached, planned = _whole(state.get("global_step")), _whole(state.get("max_steps"))
    log.reached, log.planned = reached or None, planned or None
    log.finished = (bool(planned) and reached >= planned) or any(is_summary(record) for record in log.records)
    if _early(state, log) and reached < planned:
        log.finished = log.stopped_early = True
    training = {name: state[key] for key, name in SETTINGS.items() if state.get(key) is not None}
    best = number(state.get("best_metric"))
    if isinstance(best, float) and math.isfinite(best):
        name, step = _best(log.records, best, _whole(state.get("best_global_step")), state)
        if step is not None:
            log.best = (step, best)
        if name is not None:
            training["metric_for_best_model"] = name
    epoch = number(state.get("epoch"))
    if reached and planned and isinstance(epoch, float) and epoch > 0:
        log.epochs = epoch * planned / reached
    log.config = {"training": training} if training else {}
    return log


def _early(state: dict[str, Any], log: Log) -> bool:
    """Whether a callback ended the run: EarlyStoppingCallback's count is full, or the Trainer was told to stop."""
    callbacks = state.get("stateful_callbacks")
    callbacks = callbacks if isinstance(callbacks, dict) else {}
    for name, value in callbacks.items():
        for own in value if isinstance(value, list) else [value]:
            parts = flat(own) if isinstance(own, dict) else {}
            patience = parts.get("args/early_stopping_patience")
            count = parts.get("attributes/early_stopping_patience_counter")
            if isinstance(patience, float) and isinstance(count, float) and count >= patience > 0:
                return True
            if name == "TrainerControl" and parts.get("args/should_training_stop") is True:
                return True
    return any(is_summary(record) for record in log.records)


def _best(records: list[Record], best: float, step: int, state: dict[str, Any]) -> tuple[str | None, int | None]:
    """The metric whose value is the best one, without its eval_, and the step where it stands."""
    if not step and (match := re.search(r"checkpoint-(\d+)", str(state.get("best_model_checkpoint")))):
        step = int(match.group(1)[:15])
    found: dict[str, int] = {}
    for record in records:
        at = _whole(record.get("step"))
        for key, value in record.items():
            if key.startswith("eval_") and value == best and at and (not step or at == step):
                found.setdefault(key.removeprefix("eval_"), at)
    name = "loss" if "loss" in found else next(iter(found)) if len(found) == 1 else None
    return name, step or (found[name] if name else None)


def _whole(value: Any) -> int:
    value = number(value)
    return int(value) if isinstance(value, float) and math.isfinite(value) and 0 <= value < MOST_STEPS else 0


def read_values(values: Any) -> Log | None:
    """The log of a list of records, or of a mapping of columns ({"loss": [...], "step": [...]}); None of another."""
    if isinstance(values, dict):
        columns = {key: column for key, column in values.items() if isinstance(column, list) and column}
        if not columns:
            return None
        n = max(len(column) for column in columns.values())
        values = [{key: column[i] for key, column in columns.items() if i < len(column)} for i in range(n)]
    if not isinstance(values, list):
        return None
    records = [canonical(flat(record)) for record in values if isinstance(record, dict)]
    records = [record for record in records if is_known(record)]
    return Log(records) if records else None


def notebook_text(values: Any) -> str | None:
    """What the cells of a notebook printed; None where it is no notebook. Sources are left out, pictures too."""
    if not isinstance(values, dict) or not isinstance(values.get("cells"), list):
        return None
    found = []
    for cell in values["cells"]:
        outputs = cell.get("outputs") if isinstance(cell, dict) else None
        for output in outputs if isinstance(outputs, list) else []:
            found += _shown(output) if isinstance(output, dict) else []
    return "\n".join(found)


def _shown(output: dict[str, Any]) -> list[str]:
    data = output.get("data")
    data = data if isinstance(data, dict) else {}
    for shown in (output.get("text"), data.get("text/html"), data.get("text/plain")):
        if isinstance(shown, list):
            return ["".join(part for part in shown if isinstance(part, str))]
        if isinstance(shown, str):
            return [shown]
    return []
