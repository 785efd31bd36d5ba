"""Metrics of evaluations by name: which one decides, and whether more of it is better."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from ..read.history import History

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
    """What an evaluation measured at least once, `eval_loss` among it, its speed not."""
    return [
        name
        for name in history.evals.columns
        if name.startswith("eval_") and name not in SPEED and np.isfinite(history.evals[name].to_numpy("float64")).any()
    ]


def named(history: History, metrics: Collection[str]) -> str | None:
    """That of the metrics by which the run chooses its best model; None where it does not say, or has not that one."""
    chosen = str(history.setting("training.metric_for_best_model", ""))
    return next((name for name in metrics if chosen in (name, name.removeprefix("eval_"))), None)
