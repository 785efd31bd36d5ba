"""The hooks of a LoRA layer that stays on PEFT's path: its input, its output and the gradients of both.

A layer that reads integers (the embedding) has no statistics of its input, a pass with the adapter off has none at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import torch
from torch import nn

from ...read.store import Site
from .hook import Hook


class Unfused:
    """One such layer."""

    def __init__(
        self, layer: nn.Module, sites: Sequence[Site], record: Callable[[int, torch.Tensor, int | None], None]
    ):
        """
        Args:
            layer: PEFT's.
            sites: its own.
            record: takes a site's row, a tensor, and the row of its gradient.
        """
        self._layer: Any = layer
        self._row = {site.tensor: site.id for site in sites}
        self._record = record

    def hook(self) -> list[Any]:
        """Puts the hooks on; returns their handles."""
        before = self._layer.register_forward_pre_hook(Hook(self._input), with_kwargs=True)
        return [before, self._layer.register_forward_hook(Hook(self._output))]

    def _input(self, _layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        x = args[0] if args else next(iter(kwargs.values()), None)
        if "in" not in self._row or not _is_float(x) or self._is_off():
            return None
        x = x.view_as(x)  # its gradient is this module's share, not the sum over all readers of x
        self._record(self._row["in"], x, self._row["grad_in"])
        return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, next(iter(kwargs)): x})

    def _output(self, _layer: nn.Module, _args: Any, output: Any) -> None:
        y = output[0] if isinstance(output, (tuple, list)) and output else output
        if _is_float(y) and not self._is_off():
            self._record(self._row["out"], y, self._row["grad_out"])

    def _is_off(self) -> bool:
        return self._layer.disable_adapters or bool(self._layer.merged)


def _is_float(value: Any) -> TypeGuard[torch.Tensor]:
    return isinstance(value, torch.Tensor) and value.is_floating_point()
