"""Trials that are drawn: an evaluation loss of a level, a course and a wobble, and what stands beside it in a run.

    eval_k(s) = LEVEL + SEED (effect_k + u_k) + SEED course(s) + WOBBLE e(s)        u, e ~ N(0, 1)

s is the share of the run, u the seed's luck, e the wobble of one evaluation. Effects are in SEEDs: what two seeds of
the same settings scatter by.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from lora_train.instrument.advise import Study
from lora_train.instrument.advise.sources import study_of
from lora_train.instrument.judge.explain import Finding, explain
from lora_train.instrument.read.history import COLUMNS, History

Random = np.random.Generator
LEVEL = 1.6
SEED, WOBBLE = 0.007 * LEVEL, 0.3 * 0.007 * LEVEL
STEPS, EVALUATIONS = 200, 40
RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
SEEDS = 8


@dataclass(frozen=True)
class Drawn:
    """What a trial is drawn from.

    Attributes:
        effect: of its settings on the evaluation, in SEEDs; more is worse.
        course: (EVALUATIONS,) over the run, in SEEDs; None falls to a plateau by its middle and stays.
        wobble: standard deviation of an evaluation.
        rate, seed, settings: of its configuration; settings are "section.key": value.
        train: (steps,) training loss; None falls throughout.
        norms: median gradient norm before clipping at 1.
        death: "", "diverged" or "nan".
        spiky: whether its training loss goes up and down for good.
        steps, evaluations: how many.
        speed: tokens a second.
    """

    effect: float = 0.0
    course: np.ndarray | None = None
    wobble: float = WOBBLE
    rate: float = 1e-4
    seed: int = 42
    settings: tuple[tuple[str, Any], ...] = ()
    train: np.ndarray | None = None
    norms: float = 0.5
    death: str = ""
    spiky: bool = False
    steps: int = STEPS
    evaluations: int = EVALUATIONS
    speed: float = 1000.0


def shares(n: int = EVALUATIONS) -> np.ndarray:
    """Where the evaluations lie."""
    return np.arange(1, n + 1) / n


def middle(effect: float, n: int = EVALUATIONS) -> np.ndarray:
    """Best at 45% of the run: falls to there, and from there to the end rises by so many SEEDs."""
    s = shares(n)
    down = np.maximum(0.35 - s, 0) / 0.35 * 6 * min(effect, 3) / 3
    return down + effect * np.clip((s - 0.55) / 0.2, 0, 1)


def late(effect: float, n: int = EVALUATIONS) -> np.ndarray:
    """Falls from the third quarter to the end by so many SEEDs, and before that too."""
    s = shares(n)
    return effect * np.clip((0.95 - s) / 0.2, 0, 1) + min(effect, 3) * np.maximum(0.75 - s, 0)


def early(effect: float, n: int = EVALUATIONS) -> np.ndarray:
    """Best at a twentieth of the run, and by a tenth it has risen by so many SEEDs."""
    s = shares(n)
    return effect * np.clip((s - 0.05) / 0.06, 0, 1) + 0.5 * effect * np.maximum(s - 0.11, 0)


def rising(effect: float, n: int = EVALUATIONS) -> np.ndarray:
    """Falls to a plateau, and in the last quarter rises by so many SEEDs."""
    return plateau(n) + effect * np.clip((shares(n) - 0.75) / 0.15, 0, 1)


def plateau(n: int = EVALUATIONS) -> np.ndarray:
    """Falls by 15 SEEDs to a plateau, where it is from 40% of the run on."""
    return 15 * np.exp(-shares(n) / 0.06)


def trial(drawn: Drawn, random: Random) -> History:
    """A finished run of lora-train."""
    n = drawn.steps
    t = np.linspace(0, 1, n)
    loss = np.linspace(2.0, 1.2, n) if drawn.train is None else drawn.train.copy()
    loss = loss * (1 + 0.03 * random.standard_normal(n))
    course = plateau(drawn.evaluations) if drawn.course is None else drawn.course
    level = LEVEL + SEED * (drawn.effect + random.standard_normal())
    evals = level + SEED * course + drawn.wobble * random.standard_normal(drawn.evaluations)
    norms = drawn.norms * np.exp(0.3 * random.standard_normal(n))
    if drawn.death == "diverged":
        at = n // 4
        loss[at:] = 9 + 0.3 * random.standard_normal(n - at)
        evals[drawn.evaluations // 4 :] = 9.2
        norms[at:] *= 30
    elif drawn.death == "nan":
        loss[n // 4 :] = np.nan
        evals[drawn.evaluations // 4 :] = np.nan
    if drawn.spiky:
        loss[n // 2 :] += 0.8 * (1 + 0.1 * random.standard_normal(n - n // 2))
    return _history(drawn, t, loss, evals, norms, random)


def _history(
    drawn: Drawn, t: np.ndarray, loss: np.ndarray, evals: np.ndarray, norms: np.ndarray, random: Random
) -> History:
    n, config = drawn.steps, _config(drawn)
    flat = str(config["training"]["lr_scheduler_type"]).startswith("constant")
    speed = drawn.speed * np.exp(0.02 * random.standard_normal(n))
    columns = {
        "step": np.arange(1.0, n + 1), "start": np.zeros(n), "loss": loss, "grad_norm": norms, "epoch": 3 * t,
        "learning_rate": drawn.rate * (np.ones(n) if flat else 1 - t), "tokens": np.full(n, 1000.0),
        "nonfinite_micro_batches": np.isnan(loss).astype(float), "tokens_per_second": speed,
        "step_seconds": 1000.0 / speed,
    }  # fmt: skip
    unknown = np.full(n, np.nan)
    frame = pd.DataFrame({name: columns.get(name, unknown) for name in COLUMNS})
    m = drawn.evaluations
    table = pd.DataFrame({"step": np.round(shares(m) * n), "eval_loss": evals}, dtype="float64")
    lost = tuple(int(s) for s, value in zip(table["step"], evals, strict=True) if not np.isfinite(value))
    history = History("drawn", "run", frame, table, config, {"processes": 1}, finished=True, planned=n)
    history.nan_evals, history.task_known = lost, True
    return history


def _config(drawn: Drawn) -> dict[str, dict[str, Any]]:
    training: dict[str, Any] = {
        "learning_rate": drawn.rate, "lr_scheduler_type": "linear", "max_steps": drawn.steps, "seed": drawn.seed,
        "per_device_train_batch_size": 8, "per_device_eval_batch_size": 8, "gradient_accumulation_steps": 1,
        "max_grad_norm": 1.0, "optim": "adamw_torch_fused", "warmup_steps": 10, "weight_decay": 0.0,
        "eval_strategy": "steps",
    }  # fmt: skip
    config: dict[str, dict[str, Any]] = {
        "model": {"name_or_path": "owner/model"},
        "lora": {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0},
        "data": {"train": "train.jsonl", "eval": "eval.jsonl"},
        "training": training,
    }
    for key, value in drawn.settings:
        section, _, name = key.partition(".")
        config[section][name] = value
    return config


def calm(history: History) -> list[Finding]:
    """In place of explain, for rules that ask it nothing but whether a trial lives: its own rates are those of
    benchmarks.judging, and it takes nine tenths of the time."""
    return [Finding("outcome", "healthy", "explain.finished", {})]


def suspicious(history: History) -> list[Finding]:
    """explain of what ends higher than a healthy trial does, or not finite; calm of the others."""
    last = history.column("loss")[-20:]
    return explain(history) if not np.median(last) < 1.35 else calm(history)


def study(trials: Sequence[Drawn], random: Random, judge: Callable = calm, **facts: Any) -> Study:
    """The study of some trials; `judge`: explain, or what stands in for it."""
    histories = [(f"trial-{i}", f"drawn/trial-{i}", trial(drawn, random)) for i, drawn in enumerate(trials)]
    return study_of(histories, facts, judge=judge)


def grid(
    effects: Sequence[float], seeds: int = SEEDS, key: str | None = None, values: Sequence[Any] = RATES
) -> list[Drawn]:
    """Trials of each value of the rate, or of another key, with so many seeds each."""
    found = []
    for value, effect in zip(values, effects, strict=True):
        for seed in range(seeds):
            own = Drawn(effect, seed=seed)
            found.append(replace(own, rate=value) if key is None else replace(own, settings=((key, value),)))
    return found


def with_settings(trials: Sequence[Drawn], **settings: Any) -> list[Drawn]:
    """The trials with more settings of the section training."""
    more = tuple((f"training.{key}", value) for key, value in settings.items())
    return [replace(drawn, settings=(*drawn.settings, *more)) for drawn in trials]
