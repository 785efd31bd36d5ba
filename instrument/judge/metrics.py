"""Metrics of evaluations by name: which one decides, and whether more of it is better."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from ..read.history import History
from ..read.logs.marks import NO_LOSS

SPEED = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second", "eval_model_preparation_time")
CLASSIFIERS = ("seq_cls", "token_cls")
DECIDES = ("eval_accuracy", "eval_f1", "eval_overall_f1", "eval_overall_accuracy")
"""What decides for a classifier, in this order, where the log does not name its metric."""
BY_TASK = {
    "preference": ("eval_rewards/accuracies", "eval_accuracy"),
    "reward": ("eval_accuracy",),
    "grpo": ("eval_reward",),
}
"""What decides where answers are weighed against each other: accuracies of tokens say nothing of that."""
LOWER = ("loss", "error", "perplexity", "ppl", "wer", "cer", "mse", "mae", "rmse", "runtime")
"""How the names of metrics end of which less is better."""


def lower_is_better(metric: str, history: History) -> bool:
    """As greater_is_better says, else as the name does."""
    greater = history.setting("training.greater_is_better")
    named = str(history.setting("training.metric_for_best_model", ""))
    if isinstance(greater, bool) and metric.removeprefix("eval_") == named.removeprefix("eval_"):
        return not greater
    return metric.endswith(LOWER)


def measured(history: History) -> list[str]:
    """What an evaluation measured at least once, `eval_loss` among it; not its speed, no loss near 0 by itself."""
    left_out = (*SPEED, "eval_loss") if history.task in NO_LOSS else SPEED
    asked = [name for name in history.evals.columns if name.startswith("eval_") and name not in left_out]
    return [name for name in asked if np.isfinite(history.evals[name].to_numpy("float64")).any()]


def best_evaluation(history: History) -> tuple[str, int, float] | None:
    """Metric, step and value: by what the run chooses its model by; else by the loss, or what there is without one."""
    known = measured(history)
    usual = [name for name in ("eval_loss", *BY_TASK.get(history.task, DECIDES), *known) if name in known]
    metric = named(history, known) or next(iter(usual), None)
    if metric is None:
        return None
    values = history.evals[metric].to_numpy("float64")
    values = np.where(np.isfinite(values), values, np.nan)
    at = int(np.nanargmin(values) if lower_is_better(metric, history) else np.nanargmax(values))
    return metric, int(history.evals["step"].iloc[at]), float(values[at])


def named(history: History, metrics: Collection[str]) -> str | None:
    """That of the metrics by which the run chooses its best model; None where it does not say, or has not that one."""
    chosen = str(history.setting("training.metric_for_best_model", ""))
    return next((name for name in metrics if chosen in (name, name.removeprefix("eval_"))), None)
