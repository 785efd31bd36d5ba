"""Evaluation: sums over supervised tokens, of each row and of all; logits never kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from ...instrument.read.eval_rows import EvaluationRows
from ...instrument.read.schema import Evaluation
from ...instrument.record.once import in_mode
from ...kernels.backend import is_gpu
from ..data.batches import collate, in_batches
from ..data.examples import Dataset, Example
from ..model.load import autocast
from .components import Components
from .engine import fits


class CutShort(Exception):
    """The run is to end before its evaluation has."""


@torch.no_grad()
def evaluate(
    components: Components, cut_short: Callable[[], bool] = lambda: False
) -> tuple[Evaluation, EvaluationRows]:
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
    starts = np.cumsum([0, *map(len, batches)])
    with in_mode(components.model, training=False):
        for number in range(engine.rank, len(batches), engine.world_size):
            if engine.world_size == 1 and cut_short():
                raise CutShort
            examples = batches[number]
            batch = collate(examples, components.pad_token_id, loss.padding_free).to(engine.device)
            with fits(examples, evaluating=True), autocast(config, engine.device):
                loss_sum, n_correct, losses = loss.of_tokens(batch)
            assert n_correct is not None
            totals += torch.stack([loss_sum.double(), n_correct.double()])
            of_rows[starts[number] : starts[number + 1]] = _by_row(losses, examples)
    engine.sum_([sums])
    loss_total, n_right, *loss_of_rows = sums.tolist()
    rows = _in_source_order(dataset, [example for examples in batches for example in examples], loss_of_rows)
    n_tokens = sum(example.n_supervised for example in dataset.examples)
    seconds = time.perf_counter() - started
    evaluation = Evaluation(
        eval_loss=loss_total / n_tokens,
        eval_token_accuracy=n_right / n_tokens,
        eval_runtime=seconds,
        eval_samples_per_second=len(dataset.examples) / seconds,
        eval_steps_per_second=len(batches) / seconds,
    )
    return evaluation, rows


def _by_row(losses: torch.Tensor, examples: Sequence[Example]) -> torch.Tensor:
    """Sums of the tokens' losses, float64 [rows]: tokens of a row follow each other."""
    lengths = torch.tensor([example.n_supervised for example in examples])
    if is_gpu(losses.device):
        lengths = lengths.pin_memory().to(losses.device, non_blocking=True)
    # unsafe: without a look at the lengths, for which the host would wait
    return torch.segment_reduce(losses.double(), "sum", lengths=lengths, unsafe=True)


def _in_source_order(dataset: Dataset, evaluated: Sequence[Example], sums: Sequence[float]) -> EvaluationRows:
    order = np.argsort([example.row for example in evaluated], kind="stable")
    tokens = np.array([example.n_supervised for example in evaluated], "int32")
    row = np.array([example.row for example in evaluated], "int32")
    return EvaluationRows(row[order], np.array(sums)[order], tokens[order], dataset.row_hashes)
