"""The scores of an evaluation, by torchmetrics: it is nine megabytes where scikit-learn and scipy are two hundred.

    one of several classes   accuracy, f1 (macro), f1_micro, f1_weighted, precision, recall (macro), mcc, auroc (macro,
                             one against the rest)
    several classes a row    accuracy (all of a row's are right), f1 (macro), f1_micro, f1_weighted, precision, recall,
                             auroc
    words in IOB2            accuracy (of words), f1, precision, recall (of entities, entities.py)
    values                   mse, mae, pearson, spearman

A score that is not defined, as the AUROC of a class that no row has, is None.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torchmetrics.functional import classification as of_classes
from torchmetrics.functional import regression as of_values

from ..data.labels.labels import SEVERAL, VALUE, Labels
from .entities import entity_scores, is_iob

Average = Literal["macro", "micro", "weighted"]
F1: tuple[tuple[str, Average], ...] = (("f1", "macro"), ("f1_micro", "micro"), ("f1_weighted", "weighted"))
OF_CLASSES = ("accuracy", "f1", "f1_micro", "f1_weighted", "precision", "recall", "mcc", "auroc")
OF_VALUES = ("mse", "mae", "pearson", "spearman")


@dataclass(frozen=True)
class Answers:
    """What a classifier said of the rows of a source, in their order.

    Attributes:
        logits: float32 [T, n], T rows or labelled tokens.
        targets: int64 [T], or float32 [T, n].
        lengths: of the rows in labelled tokens; each 1 where a row has one label.
    """

    logits: np.ndarray
    targets: np.ndarray
    lengths: Sequence[int]


def scores(answers: Answers, labels: Labels) -> dict[str, float | None]:
    """Every score that these labels have, by name."""
    logits, targets = torch.from_numpy(answers.logits).float(), torch.from_numpy(answers.targets)
    finite = bool(torch.isfinite(logits).all())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of scores that are not defined: they are None
        if not finite:
            found = dict.fromkeys(OF_VALUES if labels.problem_type == VALUE else OF_CLASSES, math.nan)
        elif labels.problem_type == VALUE:
            found = _of_values(logits, targets)
        elif labels.problem_type == SEVERAL:
            found = _of_several(logits, targets.long())
        else:
            found = _of_one(logits, targets)
            if labels.task == "token_cls" and is_iob(labels.names):
                entities = entity_scores(_sequences(answers, labels), _sequences(answers, labels, of_targets=True))
                found = {"accuracy": found["accuracy"], **entities}
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


def _of_one(logits: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    n = logits.shape[1]
    predicted = logits.argmax(-1)
    found = {"accuracy": float((predicted == targets).float().mean())}
    for name, average in F1:
        found[name] = float(of_classes.multiclass_f1_score(predicted, targets, n, average=average))
    found["precision"] = float(of_classes.multiclass_precision(predicted, targets, n, average="macro"))
    found["recall"] = float(of_classes.multiclass_recall(predicted, targets, n, average="macro"))
    found["mcc"] = float(of_classes.multiclass_matthews_corrcoef(predicted, targets, n))
    every = len(targets.unique()) == n
    probabilities = logits.softmax(-1)
    auroc = of_classes.multiclass_auroc(probabilities, targets, n, average="macro") if every else math.nan
    found["auroc"] = float(auroc)
    return found


def _of_several(logits: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    n = logits.shape[1]
    predicted = (logits > 0).long()
    found = {"accuracy": float((predicted == targets).all(-1).float().mean())}
    for name, average in F1:
        found[name] = float(of_classes.multilabel_f1_score(predicted, targets, n, average=average))
    found["precision"] = float(of_classes.multilabel_precision(predicted, targets, n, average="macro"))
    found["recall"] = float(of_classes.multilabel_recall(predicted, targets, n, average="macro"))
    both = bool(((targets.sum(0) > 0) & (targets.sum(0) < len(targets))).all())
    found["auroc"] = float(of_classes.multilabel_auroc(logits.sigmoid(), targets, n)) if both else math.nan
    return found


def _of_values(values: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    values, targets = values.flatten().double(), targets.flatten().double()
    varied = len(values) > 1 and float(values.std()) > 0 and float(targets.std()) > 0
    return {
        "mse": float(of_values.mean_squared_error(values, targets)),
        "mae": float(of_values.mean_absolute_error(values, targets)),
        "pearson": float(of_values.pearson_corrcoef(values, targets)) if varied else math.nan,
        "spearman": float(of_values.spearman_corrcoef(values, targets)) if varied else math.nan,
    }


def _sequences(answers: Answers, labels: Labels, of_targets: bool = False) -> list[list[str]]:
    """The names of each row's labels, predicted or wanted."""
    numbers = answers.targets if of_targets else answers.logits.argmax(-1)
    ends = np.cumsum([0, *answers.lengths])
    return [[labels.names[number] for number in numbers[start:end]] for start, end in pairwise(ends)]


def confusion(answers: Answers, labels: Labels) -> np.ndarray:
    """int64 [n, n]: rows or words by their label (down) and by what was said (across)."""
    n = len(labels.names)
    return np.bincount(answers.targets * n + answers.logits.argmax(-1), minlength=n * n).reshape(n, n)
