"""Evaluation: sums over supervised tokens, logits never kept."""

from __future__ import annotations

import time

import torch

from ...instrument.read.schema import Evaluation
from ...instrument.record.once import in_mode
from ..data.batches import collate, in_batches
from ..model.load import autocast
from .components import Components
from .engine import fits


@torch.no_grad()
def evaluate(components: Components) -> Evaluation:
    """Mean loss and argmax accuracy over all supervised tokens; each process takes every world_size-th batch."""
    started = time.perf_counter()
    config, engine, loss = components.config, components.engine, components.loss
    dataset = components.eval_data
    assert dataset is not None
    batches = list(in_batches(dataset.examples, config.training.per_device_eval_batch_size))
    # float64 sums of at most float32 terms: the order of the batches does not show
    totals = torch.zeros(2, dtype=torch.float64, device=engine.device)
    with in_mode(components.model, training=False):
        for examples in batches[engine.rank :: engine.world_size]:
            batch = collate(examples, components.pad_token_id, loss.padding_free).to(engine.device)
            with fits(examples, evaluating=True), autocast(config, engine.device):
                loss_sum, n_correct = loss(batch)
            assert n_correct is not None
            totals += torch.stack([loss_sum.double(), n_correct.double()])
    engine.sum_([totals])
    loss_total, n_right = totals.tolist()
    n_tokens = sum(example.n_supervised for example in dataset.examples)
    seconds = time.perf_counter() - started
    return Evaluation(
        eval_loss=loss_total / n_tokens,
        eval_token_accuracy=n_right / n_tokens,
        eval_runtime=seconds,
        eval_samples_per_second=len(dataset.examples) / seconds,
        eval_steps_per_second=len(batches) / seconds,
    )
