"""What the evaluations so far say: which was best, and whether it is time to stop.

The history of the metric is part of a checkpoint, and everything here is a function of it: a resumed run decides as
the run that was not interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..config.schema import METRIC_DRIVEN, TrainingSection
from ..errors import UserError, problem
from .components import Components
from .evaluate import Evaluation, ScoredEvaluation, line_of
from .lr_schedule import greater_is_better, lr_table

# (step, metric) of every evaluation, oldest first.
History = Sequence[tuple[int, float]]


def metric_of(training: TrainingSection, evaluation: Evaluation | ScoredEvaluation) -> float:
    """The metric the evaluation is judged by; NaN where it is not defined.

    Raises:
        UserError: training.compute_metrics does not give it.
    """
    name = "eval_" + training.metric_for_best_model.removeprefix("eval_")
    values = line_of(evaluation)
    if name not in values:
        known = ", ".join(values)
        raise UserError(problem("scores.not_measured", name=training.metric_for_best_model, known=known))
    value = values[name]
    return math.nan if value is None else value


def best_step(training: TrainingSection, history: History) -> int | None:
    """Step of the best evaluation, the first of equals; None where none is finite."""
    return next(iter(best_steps(training, history, 1)), None)


def best_steps(training: TrainingSection, history: History, n: int) -> list[int]:
    """Steps of the n best evaluations, the best first and of equals the first; those that are not finite are none."""
    sign = 1 if greater_is_better(training) else -1
    finite = sorted((-sign * metric, step) for step, metric in history if math.isfinite(metric))
    return [step for _, step in finite[:n]]


def kept_steps(training: TrainingSection, history: History) -> list[int]:
    """Steps of the evaluations whose checkpoints stay whatever save_total_limit says."""
    n = training.keep_best or (1 if training.load_best_model_at_end else 0)
    return best_steps(training, history, n)


def stops_early(training: TrainingSection, history: History) -> bool:
    """Whether the last `early_stopping_patience` evaluations were no better than the best before them."""
    if training.early_stopping_patience is None:
        return False
    best = best_step(training, history)
    since = [step for step, _ in history if best is None or step > best]
    return len(since) >= training.early_stopping_patience


def follow_metrics(components: Components, history: History) -> None:
    """Sets the learning rate of a schedule that follows the evaluations."""
    if components.config.training.lr_scheduler_type in METRIC_DRIVEN:
        metrics = [metric for _, metric in history]
        components.optimizer.follow(lr_table(components.config.training, components.n_steps, metrics))
