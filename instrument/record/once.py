"""A forward pass on four tokens: shows in which order a model's modules run and what they share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..messages import say


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


class Tried:
    """A forward pass that may fail: a model of somebody else's can want more than token ids. Then it is left out."""

    def __init__(self, run_once: Callable[[], Any], warn: Callable[[str], None]):
        self._run_once, self._warn, self._failed = run_once, warn, False

    def __call__(self) -> None:
        if self._failed:
            return
        try:
            self._run_once()
        except Exception as error:
            self._failed = True
            self._warn(say("attach.no_first_pass", what=f"{type(error).__name__}: {str(error).strip()[:200]}"))
