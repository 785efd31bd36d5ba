"""The user's own scores: training.compute_metrics as module:function, called as transformers calls it."""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import EvalPrediction

from ..config.schema import Config
from ..data.dataset import IGNORE_INDEX
from ..errors import UserError, first_line, problem

if TYPE_CHECKING:
    from .scores import Answers  # it imports torchmetrics

Function = Callable[[EvalPrediction], Any]


def own_function(config: Config) -> Function | None:
    """The function that the configuration names; None where it names none.

    Raises:
        UserError: there is no such module or function.
    """
    named = config.training.compute_metrics
    if named is None:
        return None
    module, _, name = named.partition(":")
    if os.getcwd() not in sys.path:  # a console script has its own folder there
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = getattr(importlib.import_module(module), name)
    except Exception as error:  # the module is the user's
        raise UserError(problem("scores.no_function", name=named, what=first_line(error, typed=True))) from error
    if not callable(found):
        raise UserError(problem("scores.no_function", name=named, what=type(found).__name__))
    return found


def own_scores(function: Function, name: str, answers: Answers, of_tokens: bool) -> dict[str, float | None]:
    """What the function gives of an evaluation.

    Args:
        function: the user's.
        name: as the configuration has it.
        answers: logits and labels of every row.
        of_tokens: whether rows have a label for each word; they are padded with -100 then.

    Raises:
        UserError: it failed, or gave something else than numbers by name.
    """
    predictions, labels = _padded(answers) if of_tokens else (answers.logits, answers.targets)
    try:
        found = function(EvalPrediction(predictions=predictions, label_ids=labels))
        values = {str(key).removeprefix("eval_"): float(value) for key, value in found.items()}
    except Exception as error:  # the function is the user's
        raise UserError(problem("scores.failed", name=name, what=first_line(error, typed=True))) from error
    return {key: value if math.isfinite(value) else None for key, value in values.items()}


def _padded(answers: Answers) -> tuple[np.ndarray, np.ndarray]:
    """[rows, longest, n] and [rows, longest], filled up with -100."""
    shape = (len(answers.lengths), max(answers.lengths))
    logits = np.full((*shape, answers.logits.shape[1]), IGNORE_INDEX, np.float32)
    labels = np.full(shape, IGNORE_INDEX, np.int64)
    ends = np.cumsum([0, *answers.lengths])
    for row, (start, end) in enumerate(pairwise(ends)):
        logits[row, : end - start], labels[row, : end - start] = answers.logits[start:end], answers.targets[start:end]
    return logits, labels
