"""What does not go with model.task: keys of the other kind of model, and metrics that no evaluation gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..config.schema import TASKS, Config
from ..errors import Problem, problem

# Keys that only a language model has, and those that only a classifier has.
OF_TEXT = ("data.prompt_template", "data.chat_template", "data.train_on_inputs", "data.packing")
OF_LABELS = ("data.labels", "training.class_weights", "training.compute_metrics")
TEXT_METRICS = ("loss", "token_accuracy")
LABEL_METRICS = ("loss", "accuracy", "f1", "f1_micro", "f1_weighted", "precision", "recall", "mcc", "auroc")
VALUE_METRICS = ("loss", "mse", "mae", "pearson", "spearman")


def task_problems(config: Config, where: Callable[[str], str]) -> Iterator[Problem]:
    """Contradictions between model.task and other keys.

    Args:
        config: all sections.
        where: key -> the file or command line that set it.
    """
    task, task_type = config.model.task, config.lora.task_type
    if TASKS[task] != task_type:
        yield problem("config.two_tasks", file=where("lora.task_type"), task=task, task_type=task_type)
    values = config.model_dump()

    def is_set(key: str) -> bool:
        section, _, name = key.partition(".")
        return values[section][name] not in (None, False)

    for key in OF_TEXT if config.is_classifier else OF_LABELS:
        if is_set(key):
            kind = "config.not_for_classifier" if config.is_classifier else "config.for_classifier"
            yield problem(kind, file=where(key), key=key, task=task)
    if config.is_classifier and config.data.format != "auto":
        yield problem("config.not_for_classifier", file=where("data.format"), key="data.format", task=task)
    kind = config.model.problem_type
    if not config.is_classifier and kind != "auto":
        yield problem("config.for_classifier", file=where("model.problem_type"), key="model.problem_type", task=task)
    yield from _weight_problems(config, where)
    yield from _metric_problems(config, where)


def _weight_problems(config: Config, where: Callable[[str], str]) -> Iterator[Problem]:
    weights = config.training.class_weights
    if weights is not None and config.model.problem_type == "regression":
        yield problem("config.weights_of_values", file=where("training.class_weights"))
    for name, weight in weights.items() if isinstance(weights, dict) else ():
        if not weight > 0:
            yield problem("config.bad_weight", file=where("training.class_weights"), name=name)


def _metric_problems(config: Config, where: Callable[[str], str]) -> Iterator[Problem]:
    """A metric that no evaluation gives; what the user's own function gives is known when it has run."""
    if config.training.compute_metrics is not None:
        return
    known = TEXT_METRICS
    if config.is_classifier:
        kinds = {"regression": VALUE_METRICS, "auto": (*LABEL_METRICS, *VALUE_METRICS[1:])}
        known = kinds.get(config.model.problem_type, LABEL_METRICS)
    name = config.training.metric_for_best_model.removeprefix("eval_")
    if name not in known:
        file = where("training.metric_for_best_model")
        yield problem("config.no_such_metric", file=file, name=name, known=", ".join(known))
