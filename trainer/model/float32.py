"""Lets chosen modules of a 16-bit run compute in float32, with everything that adds their output to the residual.

A named module's frozen weights are widened, its inputs are cast, autocast is off inside it and its output stays
float32. Type promotion then keeps the residual stream float32 from there on, and the next linear rounds its own input
as autocast always does. So that every norm can read that residual, the weights of all norms are widened as well: they
are small. 4-bit weights are decoded to float32 where they are used.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch.utils._pytree import tree_map_only

from ...instrument.record.trace import traced_modules
from ..errors import UserError, problem


def matching(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Names of the modules that the patterns name.

    Raises:
        UserError: a pattern names none.
    """
    names = list(traced_modules(model))
    found: dict[str, None] = {}
    for pattern in patterns:
        hits = fnmatch.filter(names, pattern)
        if not hits:
            last = pattern.rpartition(".")[2]
            near = [name for name in names if name.endswith(last)][:3] or names[-3:]
            raise UserError(problem("precision.no_such_module", pattern=pattern, near=", ".join(near)))
        found |= dict.fromkeys(hits)
    return list(found)


@contextmanager
def in_float32(model: PeftModel, names: Sequence[str]) -> Iterator[None]:
    """While it lasts, these modules compute in float32."""
    undo = widen(model, names)
    try:
        yield
    finally:
        undo()


def widen(model: PeftModel, names: Sequence[str]) -> Callable[[], None]:
    """Makes these modules compute in float32.

    Returns:
        what gives them their weights and forward back.
    """
    modules = traced_modules(model)
    narrow: list[tuple[nn.Parameter, torch.Tensor]] = []
    forwards: list[tuple[nn.Module, Any]] = []
    wide = [parameter for name in names for parameter in modules[name].parameters()]
    if names:
        norms = [module for module in modules.values() if "norm" in type(module).__name__.lower()]
        wide += [parameter for norm in norms for parameter in norm.parameters(recurse=False)]
    for parameter in wide:
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            narrow.append((parameter, parameter.data))
            parameter.data = parameter.data.float()
    for name in names:
        module = modules[name]
        forwards.append((module, module.__dict__.get("forward")))
        module.forward = Widened(module.forward, model.device.type)

    def undo() -> None:
        for parameter, data in narrow:
            parameter.data = data
        for module, forward in reversed(forwards):
            if forward is None:
                del module.forward
            else:
                module.forward = forward

    return undo


class Widened:
    """The forward of a module that computes in float32."""

    def __init__(self, forward: Callable[..., Any], device: str):
        self._forward, self._device = forward, device

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = tree_map_only(torch.Tensor, _float32, (args, kwargs))
        with torch.autocast(self._device, enabled=False):
            return self._forward(*args, **kwargs)


def is_wide(module: nn.Module) -> bool:
    """Whether `widen` made it compute in float32."""
    return isinstance(vars(module).get("forward"), Widened)


def _float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
