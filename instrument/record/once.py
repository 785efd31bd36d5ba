"""A forward pass on four tokens: shows in which order a model's modules run and what they share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """The model in training or evaluation mode for a while; then in the mode it was in."""
    before = model.training
    model.train(training)
    try:
        yield
    finally:
        model.train(before)


def run_once(model: nn.Module, device: torch.device | None = None) -> None:
    """Four tokens through the model in evaluation mode. `device`: of the tokens, if the model does not say."""
    with in_mode(model, training=False):
        where: Any = device or model.device
        model(input_ids=torch.arange(4, device=where)[None], use_cache=False)
