"""Evaluation: sums over supervised tokens, of each row and of all. Logits are kept of classifiers alone, whose scores
are not sums.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...instrument.messages import say
from ...instrument.read.eval_rows import Confusion, EvaluationRows
from ...instrument.read.schema import Evaluation
from ...instrument.record.once import in_mode
from ...kernels.backend import segment_sums
from ..data.batches import Batch, collate, in_batches
from ..data.examples import Dataset, Example
from ..data.labels.labels import SEVERAL, SINGLE, VALUE, Labels
from ..model.classify import ClassifierLoss
from ..model.load import autocast
from ..phases import phase
from .components import Components
from .engine import fits

if TYPE_CHECKING:
    from ..metrics.scores import Answers


class CutShort(Exception):
    """The run is to end before its evaluation has."""


@dataclass(frozen=True)
class ScoredEvaluation:
    """One pass of a classifier over the evaluation rows.

    Attributes:
        scores: eval_accuracy and the like; None where one is not defined.
    """

    eval_loss: float
    scores: dict[str, float | None]
    eval_runtime: float
    eval_samples_per_second: float
    eval_steps_per_second: float


def line_of(evaluation: Evaluation | ScoredEvaluation) -> dict[str, Any]:
    """What metrics.jsonl has of an evaluation."""
    values = dict(vars(evaluation))
    scores = values.pop("scores", {})
    return {"eval_loss": values.pop("eval_loss"), **scores, **values}


@torch.no_grad()
def evaluate(
    components: Components, cut_short: Callable[[], bool] = lambda: False
) -> tuple[Evaluation | ScoredEvaluation, EvaluationRows]:
    """Mean loss and argmax accuracy over all supervised tokens, and the loss of each row; each process takes every
    world_size-th batch, and all of them know the result. Nothing waits for the device before the last batch.

    Args:
        components: with evaluation data.
        cut_short: asked before each batch whether to give up; of several processes all go to the end.

    Raises:
        CutShort: it was.
    """
    started = time.perf_counter()
    config, engine, loss = components.config, components.engine, components.loss
    dataset = components.eval_data
    assert dataset is not None
    batches = list(in_batches(dataset.examples, config.training.per_device_eval_batch_size))
    # float64 sums of at most float32 terms: the order of the batches does not show. One tensor: it is read once
    sums = torch.zeros(2 + len(dataset.examples), dtype=torch.float64, device=engine.device)
    totals, of_rows = sums[:2], sums[2:]  # a row is some process's, and 0 in the others
    starts, kept = np.cumsum([0, *map(len, batches)]), {}
    share = range(engine.rank, len(batches), engine.world_size)
    told = phase(say("phase.evaluating"), len(share))
    with in_mode(components.model, training=False), told as advance:
        for number in share:
            if engine.world_size == 1 and cut_short():
                raise CutShort
            examples = batches[number]
            batch = collate(examples, components.pad_token_id, loss.padding_free).to(engine.device)
            with fits(examples, evaluating=True), autocast(config, engine.device):
                loss_sum, n_correct, losses = _judged(loss, batch, kept, number)
            assert n_correct is not None
            totals += torch.stack([loss_sum.double(), n_correct.double()])
            of_rows[starts[number] : starts[number + 1]] = segment_sums(
                losses, [example.n_supervised for example in examples]
            )
            advance(1)
    engine.sum_([sums])
    loss_total, n_right, *loss_of_rows = sums.tolist()
    rows = _in_source_order(dataset, [example for examples in batches for example in examples], loss_of_rows)
    counts = sum(example.counts for example in dataset.examples)
    found = None
    if isinstance(loss, ClassifierLoss):
        found, right, matrix = _scores(components, kept, batches)
        rows = replace(rows, n_correct=right, confusion=matrix)
    seconds = time.perf_counter() - started
    speed = {
        "eval_runtime": seconds,
        "eval_samples_per_second": len(dataset.examples) / seconds,
        "eval_steps_per_second": len(batches) / seconds,
    }
    if found is not None:
        return ScoredEvaluation(loss_total / counts, found, **speed), rows
    return Evaluation(loss_total / counts, n_right / counts, **speed), rows


def _judged(loss: Any, batch: Batch, kept: dict[int, torch.Tensor], number: int) -> tuple[Any, Any, Any]:
    """Loss sum, right answers and losses of a batch; a classifier's logits are kept under the batch's number."""
    if not isinstance(loss, ClassifierLoss):
        return loss.of_tokens(batch)
    loss_sum, n_correct, losses, logits = loss.scored(batch)
    kept[number] = logits
    return loss_sum, n_correct, losses


def _scores(
    components: Components, kept: dict[int, torch.Tensor], batches: Sequence[Sequence[Example]]
) -> tuple[dict[str, float | None], np.ndarray | None, Confusion | None]:
    """eval_accuracy and the like, over all processes; int32 [rows] right answers of each row, None of values; how often
    a class was taken for another, where a row or word has one.
    """
    from ..metrics.own import own_scores
    from ..metrics.scores import confusion, scores  # imports torchmetrics, which only classifiers need

    everything: dict[int, np.ndarray] = {}
    for part in components.engine.gather_objects({number: t.cpu().numpy() for number, t in kept.items()}):
        everything |= part
    dataset, config = components.eval_data, components.config
    assert dataset is not None
    assert dataset.labels is not None
    answers = answers_of([example for examples in batches for example in examples], everything)
    found = scores(answers, dataset.labels)
    if components.own_metrics is not None:
        named = str(config.training.compute_metrics)
        found |= own_scores(components.own_metrics, named, answers, config.model.task == "token_cls")
    matrix = None
    if dataset.labels.problem_type == SINGLE:
        matrix = Confusion(list(dataset.labels.names), confusion(answers, dataset.labels).tolist())
    return {f"eval_{name}": value for name, value in found.items()}, right_answers(answers, dataset.labels), matrix


def right_answers(answers: Answers, labels: Labels) -> np.ndarray | None:
    """int32 [rows]: the labels of each row that are right, of several labels a row 1 where all are; None of values."""
    if labels.problem_type == VALUE:
        return None
    if labels.problem_type == SEVERAL:
        right = ((answers.logits > 0) == (answers.targets > 0)).all(-1)
    else:
        right = answers.logits.argmax(-1) == answers.targets
    starts = np.cumsum([0, *answers.lengths[:-1]])
    return np.add.reduceat(right, starts, dtype="int32")


def answers_of(evaluated: Sequence[Example], logits: dict[int, np.ndarray]) -> Answers:
    """The answers in the order of the source.

    Args:
        evaluated: the rows in the order of the batches.
        logits: by number of the batch.
    """
    from ..metrics.scores import Answers

    lengths = [example.n_supervised for example in evaluated]
    flat = np.concatenate([logits[number] for number in sorted(logits)])
    of_rows = np.split(flat, np.cumsum(lengths)[:-1])
    order = np.argsort([example.row for example in evaluated], kind="stable")
    targets = [label_of(evaluated[at]) for at in order]
    return Answers(
        np.concatenate([of_rows[at] for at in order]), np.concatenate(targets), [lengths[at] for at in order]
    )


def label_of(example: Example) -> np.ndarray:
    """int64 [T] of one class or of words; float32 [1, n] of several labels or values."""
    assert example.labels is not None
    if example.is_tagged:
        return example.labels[example.supervised]
    return example.labels if example.labels.dtype == np.int64 else example.labels[None]


def _in_source_order(dataset: Dataset, evaluated: Sequence[Example], sums: Sequence[float]) -> EvaluationRows:
    order = np.argsort([example.row for example in evaluated], kind="stable")
    tokens = np.array([example.n_supervised for example in evaluated], "int32")
    row = np.array([example.row for example in evaluated], "int32")
    weight = None
    if any(example.weight is not None for example in evaluated):
        weight = np.array([example.counts for example in evaluated], "float64")[order]
    return EvaluationRows(row[order], np.array(sums)[order], tokens[order], dataset.row_hashes, weight=weight)
