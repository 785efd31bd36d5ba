"""Learning rates, from transformers' own schedules.

Update i (from 0) uses rate i of a table that is made before training. A schedule that follows an evaluation metric
cannot be known in advance: its table is flat, and is made again after every evaluation from all metrics so far.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from transformers import get_scheduler

from ...instrument.judge.metrics import LOWER
from ..config.limits import MOST_STEPS
from ..config.schema import METRIC_DRIVEN, TrainingSection
from ..errors import UserError, first_line, problem


def lr_table(training: TrainingSection, n_steps: int, metrics: Sequence[float] = ()) -> list[float]:
    """Learning rate of update i (from 0) for i in 0..n_steps.

    Args:
        metrics: of the evaluations so far, oldest first; only schedules in METRIC_DRIVEN look at them.

    Raises:
        UserError: training.lr_scheduler_kwargs do not fit the schedule, or there are too many steps.
    """
    if n_steps > MOST_STEPS:
        raise UserError(problem("config.too_many_steps", where="", steps=f"{n_steps:,}", most=f"{MOST_STEPS:,}"))
    dummy = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=training.learning_rate)
    kind, extra = training.lr_scheduler_type, dict(training.lr_scheduler_kwargs)
    if kind == "reduce_lr_on_plateau":
        extra.setdefault("mode", "max" if greater_is_better(training) else "min")
    try:
        schedule: Any = get_scheduler(kind, dummy, warmup_steps(training, n_steps), n_steps, extra)
        if kind in METRIC_DRIVEN:
            for metric in metrics:
                schedule.step(metric)
            return [dummy.param_groups[0]["lr"]] * (n_steps + 1)
        return list(_rates(dummy, schedule, n_steps))
    except (TypeError, ValueError) as error:
        raise UserError(problem("config.scheduler_kwargs", kind=kind, what=first_line(error))) from error


def _rates(dummy: torch.optim.Optimizer, schedule: Any, n_steps: int):
    for _ in range(n_steps + 1):
        yield float(schedule.get_last_lr()[0])
        dummy.step()
        schedule.step()


def warmup_steps(training: TrainingSection, n_steps: int) -> int:
    """Steps of warm-up; a share of all steps is rounded up, as in transformers."""
    if training.warmup_steps >= 1:
        return int(training.warmup_steps)
    return math.ceil((training.warmup_steps or training.warmup_ratio) * n_steps)


def greater_is_better(training: TrainingSection) -> bool:
    """Whether a larger metric_for_best_model is a better one."""
    if training.greater_is_better is not None:
        return training.greater_is_better
    return not training.metric_for_best_model.endswith(LOWER)


def steps_of(interval: float, n_steps: int) -> int:
    """An interval in steps; below 1 it is a share of all steps, rounded up, as in transformers."""
    return int(interval) if interval >= 1 else max(1, math.ceil(interval * n_steps))
