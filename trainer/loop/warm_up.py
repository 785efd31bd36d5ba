"""Compiles what a run will launch before its first step, by a step and an evaluation of one row that leave no trace.

A kernel is compiled where it is first launched: without this the first step, evaluation and histogram would compile
what they launch, and that time would be counted as training. No kernel is specialised on anything a batch decides, so a
row of four tokens compiles what every row takes.
"""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import torch

from ...instrument.record.once import in_mode
from ...kernels.backend import is_gpu
from ..data.batches import collate
from ..data.examples import Example
from ..model.load import autocast
from .components import Components
from .train import micro_batch_loss


def warm_up(components: Components) -> None:
    """Nothing of it is applied, recorded or drawn from a random state that a step uses; on a CPU nothing is done."""
    if not is_gpu(components.engine.device):
        return
    row = Example(0, np.arange(4, dtype=np.int32) % 2, np.arange(4) > 0)
    if components.config.is_classifier:  # its row has a label
        row = min(components.plan.dataset.examples, key=lambda example: len(example.input_ids))
    recorder, optimizer = components.recorder, components.optimizer
    components.model.train()
    with recorder.active() if recorder else nullcontext():
        if recorder:
            recorder.begin_step(1, look=True)
        micro_batch_loss(components, 1, 0, [row]).backward()
        gradient_rows = optimizer.gradient_rows()
        if recorder:
            recorder.finish_step(gradient_rows, optimizer.gradients, keep=False)
        device = components.engine.device
        batch = collate([row], components.pad_token_id, components.loss.padding_free).to(device)
        with in_mode(components.model, training=False), torch.no_grad(), autocast(components.config, device):
            components.loss(batch)
    optimizer.clear()
