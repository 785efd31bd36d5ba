"""The model that is trained, in one sequence of steps: load, fast path, adapter, fused layers, float32, loss, padding.

What is real about it is the loader's: the trainer's own reads weights, that of --dry-run makes tensors without memory
(dry_run/fake_model.py). A step that is added here is in both.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from ...instrument.record.hooks.layers import other_layers
from ...instrument.record.once import run_once
from ...instrument.record.patch import Patched, patch
from ..config.schema import Config
from .classify import ClassifierLoss
from .fast_path import take_fast_path
from .float32 import matching, widen
from .load import add_lora, autocast
from .loss import SupervisedLoss


class Loader(Protocol):
    """What it takes to have a model, with or without memory."""

    def load(self) -> PreTrainedModel:
        """The frozen base."""
        ...

    def making(self) -> AbstractContextManager:
        """In which the adapter is made."""
        ...

    def complete(self, model: PeftModel) -> None:
        """Gives the adapter, or all of the model, its values."""
        ...

    def running(self) -> AbstractContextManager:
        """In which the model can be run."""
        ...

    def transforms_logits(self) -> bool | None:
        """Whether the model does more to its logits than project; None: to be found out by running it."""
        ...

    def remove_padding(self, loss: SupervisedLoss) -> None:
        """Turns to padding-free batches, if the model can."""
        ...


@dataclass(frozen=True)
class Built:
    """A model with its adapter, its loss, and which of its layers are fused."""

    model: PeftModel
    loss: SupervisedLoss | ClassifierLoss
    patched: Patched


def build_model(config: Config, device: torch.device, loader: Loader) -> Built:
    """The model that the configuration trains on the device.

    Raises:
        UserError: it cannot be loaded, or lora.target_modules names nothing in it.
    """
    base = loader.load()
    take_fast_path(base, device)
    with loader.making():
        model = add_lora(base, config)
    with loader.running(), autocast(config, device):
        loader.complete(model)
        wide = matching(model, config.precision.fp32_modules)
        patched = patch(model, lambda: run_once(model), alone=wide)
        widen(model, wide)
        if config.is_classifier:
            patched = replace(patched, others=other_layers(model, patched, lambda: run_once(model)))
            return Built(model, ClassifierLoss(model, config), patched)
        loss = SupervisedLoss(model, getattr(torch, config.compute_dtype), loader.transforms_logits())
        if config.data.padding_free:
            loader.remove_padding(loss)
    return Built(model, loss, patched)
