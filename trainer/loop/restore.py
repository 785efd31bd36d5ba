"""Puts the state of a checkpoint into what a step needs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from .checkpoint import Progress, load_checkpoint
from .components import Parts
from .train import follow_metrics


def restore(parts: Parts, checkpoint: Path) -> tuple[Parts, Progress]:
    """Puts the state of a checkpoint into the parts; the order of the rows and the learning rate follow it.

    Raises:
        UserError: the checkpoint is torn or belongs to another model.
    """
    progress = load_checkpoint(checkpoint, parts.model, parts.optimizer, parts.loss_scale)
    follow_metrics(parts, progress)
    return replace(parts, plan=replace(parts.plan, begins_after=progress.data_begins_after)), progress
