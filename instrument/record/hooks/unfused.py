"""The hooks of a layer that no fused operator computes: its input, its output and the gradients of both.

LoRA layers on PEFT's path, layers of other adapters, plain linears. A layer that reads integers (the embedding) has no
statistics of its input, an adapter's layer has none of a pass with the adapter off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
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
            layer: PEFT's, or a plain module.
            sites: its own; only what they name is read.
            record: takes a site's row, a tensor, and the row of its gradient.
        """
        self._layer: Any = layer
        self._row = {site.tensor: site.id for site in sites}
        self._record = record
        self._reads_grad_in = "grad_in" in self._row

    def keep(self, kept: Sequence[bool]) -> None:
        """Reads only what one of these sites needs; in and out of a pass are read with their gradients.

        Without `grad_in` a model is trained bit for bit as without hooks: with it, a layer's share of its input's
        gradient is added up before it is added to that of other readers.
        """
        self._reads_grad_in = "grad_in" in self._row and kept[self._row["grad_in"]]
        for pair in (("in", "grad_in"), ("out", "grad_out")):
            if not any(kept[self._row[tensor]] for tensor in pair if tensor in self._row):
                for tensor in pair:
                    self._row.pop(tensor, None)

    def hook(self) -> list[Any]:
        """Puts the hooks on; returns their handles."""
        handles = []
        if "in" in self._row:
            handles.append(self._layer.register_forward_pre_hook(Hook(self._input), with_kwargs=True))
        if "out" in self._row:
            handles.append(self._layer.register_forward_hook(Hook(self._output)))
        return handles

    def _input(self, _layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        x = args[0] if args else next(iter(kwargs.values()), None)
        if not _is_float(x) or self._is_off():
            return None
        if not self._reads_grad_in:
            self._record(self._row["in"], x, None)
            return None
        x = x.view_as(x)  # its gradient is this module's share, not the sum over all readers of x
        self._record(self._row["in"], x, self._row["grad_in"])
        return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, next(iter(kwargs)): x})

    def _output(self, _layer: nn.Module, _args: Any, output: Any) -> None:
        y = output[0] if isinstance(output, (tuple, list)) and output else output
        if _is_float(y) and not self._is_off():
            self._record(self._row["out"], y, self._row.get("grad_out"))

    def _is_off(self) -> bool:
        layer = self._layer
        return isinstance(layer, BaseTunerLayer) and (layer.disable_adapters or bool(layer.merged))


def _is_float(value: Any) -> TypeGuard[torch.Tensor]:
    return isinstance(value, torch.Tensor) and value.is_floating_point()
