"""Compiles what a run will launch before its first step, by a step and an evaluation of one row that leave no trace.

A kernel is compiled where it is first launched: without this the first step, evaluation and histogram would compile
what they launch, and that time would be counted as training. No kernel is specialised on anything a batch decides, so a
row of four tokens compiles what every row takes.
"""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import torch

from ...kernels.backend import is_gpu
from ..data.batches import collate
from ..data.examples import Example
from ..model.load import autocast
from .components import Parts
from .train import micro_batch_loss


def warm_up(parts: Parts) -> None:
    """Nothing of it is applied, recorded or drawn from a random state that a step uses; on a CPU nothing is done."""
    if not is_gpu(parts.engine.device):
        return
    row = Example(0, np.arange(4, dtype=np.int32) % 2, np.arange(4) > 0)
    recorder, optimizer = parts.recorder, parts.optimizer
    parts.model.train()
    with recorder.active() if recorder else nullcontext():
        if recorder:
            recorder.begin_step(1, look=True)
        micro_batch_loss(parts, 1, 0, [row]).backward()
        gradient_rows = optimizer.gradient_rows()
        if recorder:
            recorder.finish_step(gradient_rows, optimizer.gradients, keep=False)
        parts.model.eval()
        batch = collate([row], parts.pad_token_id, parts.loss.padding_free).to(parts.engine.device)
        with torch.no_grad(), autocast(parts.config, parts.engine.device):
            parts.loss(batch)
    parts.model.train()
    optimizer.clear()
