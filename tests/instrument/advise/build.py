"""Studies made for one rule: calm runs whose evaluations are given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from lora_train.instrument.advise import Study
from lora_train.instrument.advise.sources import study_of
from lora_train.instrument.judge.explain import Finding, explain
from lora_train.instrument.read.history import COLUMNS, History

STEPS = 100


def run(
    evals: Sequence[float] | np.ndarray = (),
    *,
    settings: dict[str, Any] | None = None,
    steps: int = STEPS,
    planned: int | None = None,
    **columns: Any,
) -> History:
    """A finished run of lora-train of so many steps, evaluations spread over it."""
    frame = pd.DataFrame({name: np.full(steps, np.nan) for name in COLUMNS})
    frame["step"], frame["start"] = np.arange(1.0, steps + 1), 0.0
    frame["loss"], frame["step_seconds"] = np.linspace(2, 1, steps), 0.5
    for name, values in columns.items():
        frame[name] = values
    config: dict[str, dict[str, Any]] = {"data": {"train": "t.jsonl", "eval": "e.jsonl"}, "lora": {"r": 8}}
    config["training"] = {
        "learning_rate": 1e-4, "seed": 1, "per_device_train_batch_size": 8, "per_device_eval_batch_size": 8,
        "gradient_accumulation_steps": 1, "lr_scheduler_type": "linear", "max_grad_norm": 1.0, "max_steps": steps,
    }  # fmt: skip
    for key, value in (settings or {}).items():
        section, _, name = key.partition(".")
        config.setdefault(section, {})[name] = value
    at = np.round(np.arange(1, len(evals) + 1) * steps / max(len(evals), 1))
    table = pd.DataFrame({"step": at, "eval_loss": np.asarray(evals, "float64")}, dtype="float64")
    history = History("runs/x", "run", frame, table, config, {}, finished=True, planned=planned or steps)
    history.task_known = True
    return history


def calm(history: History) -> list[Finding]:
    """No finding: the trial lives."""
    return []


def study(*runs: History, judge=calm, **facts: Any) -> Study:
    """The study of some runs, called t0, t1, ..."""
    return study_of([(f"t{i}", f"runs/t{i}", one) for i, one in enumerate(runs)], facts, judge=judge)


def explained(*runs: History) -> Study:
    """The same, with explain's findings."""
    return study(*runs, judge=explain)


def seeds(level: float, n: int = 4, spread: float = 0.01, **settings: Any) -> list[History]:
    """Runs of one combination whose evaluations end at levels that scatter evenly by `spread` about one."""
    offsets = np.linspace(-1, 1, n) * spread
    own = {key.replace("__", "."): value for key, value in settings.items()}
    return [
        run(np.full(12, level + offset), settings={**own, "training.seed": seed}) for seed, offset in enumerate(offsets)
    ]
