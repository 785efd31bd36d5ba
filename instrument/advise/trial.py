"""One run of a study, as the rules see it: its settings, whether it lived, and its course by the metric."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..judge.explain import explain
from ..judge.explain.finding import Finding, median
from ..judge.noise import FEW, Noise, noise_of
from ..read.history import History
from ..show.compare.ranking import ASSUMED, SMOOTH

DEATHS = (
    "explain.no_steps", "explain.stopped", "explain.stopped_without_remedy", "explain.attached_stopped",
    "explain.loss_blew_up", "explain.loss_blew_up_rate", "explain.loss_rose", "explain.exploding", "explain.loss_nan",
    "explain.loss_nan_frozen", "explain.loss_nan_moves", "explain.loss_nan_unknown", "explain.zero_from_start",
    "explain.zero_rate_frozen", "explain.zero_rate_moves", "explain.zero_unknown_rate", "explain.zero_other",
    "explain.gradient_never_finite", "explain.gradient_none_scale", "explain.gradient_none_since",
    "explain.eval_nan_both", "explain.no_model",
)  # fmt: skip
"""Findings of explain after which a run's last numbers say nothing of its settings but that they do not work."""
# How many standard errors of a difference of smoothed evaluations the best step may be ahead by chance: of the some
# ten places that a smoothed series of 30 holds the best is ahead of a given one by more in about one of fifty series.
APART = 2.6


@dataclass
class Trial:
    """A run of a study.

    Attributes:
        letter, name: how it is called.
        history: what it recorded.
        settings: "section.key" -> value, of its configuration or of the files beside its state; what is unknown is
            missing.
        folder: where it lies, as text; what was read for a log.
        metric: what the study is judged by; lower: whether less of it is better.
        judge: explain.
    """

    letter: str
    name: str
    history: History
    settings: dict[str, Any]
    folder: str
    metric: str = "eval_loss"
    lower: bool = True
    judge: Callable[[History], list[Finding]] = explain

    @cached_property
    def findings(self) -> list[Finding]:
        """What explain says of it."""
        with np.errstate(all="ignore"):
            return self.judge(self.history)

    @cached_property
    def death(self) -> Finding | None:
        """Why its end says nothing, where it does not."""
        found = [f for f in self.findings if f.key in DEATHS]
        found += [f for f in self.findings if f.topic in ("outcome", "loss") and f.verdict == "wrong"]
        if found:
            return found[0]
        step, _ = self.evaluations
        if self.history.nan_evals and (not len(step) or self.history.nan_evals[-1] > step[-1]):
            return Finding("eval_loss", "wrong", "explain.eval_nan", {"n": 1, "of": 1, "steps": "-"})
        return None

    @cached_property
    def evaluations(self) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of the finite evaluations; of what is better when larger the negative, so less is better."""
        evals = self.history.evals
        if self.metric not in evals:
            return np.zeros(0), np.zeros(0)
        step, values = evals["step"].to_numpy("float64"), evals[self.metric].to_numpy("float64")
        kept = np.isfinite(values)
        return step[kept], values[kept] if self.lower else -values[kept]

    @cached_property
    def noise(self) -> Noise:
        """The wobble of its evaluations."""
        return noise_of(self.evaluations[1], ASSUMED / 2)

    @cached_property
    def smoothed(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Steps, means of up to SMOOTH neighbours, and the standard deviation of a mean."""
        step, values = self.evaluations
        size = SMOOTH if len(values) >= FEW else 1
        if not len(values):
            return step, values, math.nan
        padded = np.concatenate([np.repeat(np.nan, size // 2), values, np.repeat(np.nan, size // 2)])
        windows = np.lib.stride_tricks.sliding_window_view(padded, size)
        return step, np.nanmean(windows, axis=1), self.noise.sigma / math.sqrt(size)

    @property
    def level(self) -> float:
        """The lowest smoothed evaluation; NaN without any."""
        means = self.smoothed[1]
        return float(means.min()) if len(means) else math.nan

    @cached_property
    def best_steps(self) -> np.ndarray:
        """Steps whose smoothed evaluation noise cannot tell from the best one; the best itself is among them."""
        step, means, error = self.smoothed
        if not len(means):
            return step
        return step[means - means.min() <= APART * error * math.sqrt(2) + 1e-12]

    @property
    def best_step(self) -> int:
        """Step of the lowest smoothed evaluation."""
        step, means, _ = self.smoothed
        return int(step[int(np.argmin(means))])

    @property
    def horizon(self) -> int:
        """Steps it was to make; what it made where that is unknown."""
        return int(self.history.planned or self.history.last_step)

    @property
    def is_unfinished(self) -> bool:
        """Whether it has made fewer steps than it was to make, and has not ended by itself."""
        history = self.history
        return not history.finished and history.planned is not None and history.last_step < history.planned

    def number(self, key: str) -> float | None:
        """A setting that is a number."""
        value = self.settings.get(key)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
        return None

    @property
    def batch(self) -> float | None:
        """Rows of a step on all processes; None where one of its factors is unknown."""
        if (total := self.number("training.total_train_batch_size")) is not None:
            return total
        size = self.number("training.per_device_train_batch_size")
        parts = self.number("training.gradient_accumulation_steps")
        devices = (
            self.history.env.get("processes", 1) if self.history.kind == "run" else self.number("training.num_devices")
        )
        return None if size is None or parts is None else size * parts * float(devices or 1)

    @cached_property
    def seconds(self) -> float:
        """What it took, evaluations and all, at the length it has; NaN where the source does not say."""
        total = self.history.summary.get("train_runtime", math.nan)
        if math.isfinite(total):
            return float(total)
        _, seconds = self.history.finite("step_seconds")
        if len(seconds):
            return float(median(seconds) * self.history.last_step)
        progress = self.history.progress
        return float(progress["elapsed_seconds"].iloc[-1]) if len(progress) else math.nan

    @property
    def schedule(self) -> str | None:
        """The name of its schedule, where that is known."""
        value = self.settings.get("training.lr_scheduler_type")
        return None if value is None else str(value).removeprefix("SchedulerType.").lower()
