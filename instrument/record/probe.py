"""Looks at the outputs of modules without hooks, now and then: norms, activations, attention, the residual stream.

They are where fp16 runs out of range as often as in a LoRA layer, and no fused kernel passes through them. Hooks are
on the model only in the forward pass that is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from ..read.store import Site
from .hooks.hook import Hook
from .trace import traced_modules


class Probe:
    """The modules that are looked at.

    Attributes:
        sites: one `out` site for each, in the order of their first call.
    """

    def __init__(
        self,
        model: nn.Module,
        run_once: Callable[[], Any],
        first_id: int,
        first_order: int,
        hooked: Collection[nn.Module] = (),
    ):
        """
        Args:
            model: with LoRA layers in it, which are left out, and containers, which are never called.
            run_once: runs a forward on a few tokens.
            first_id: id of the first site, and first_order its place in the forward order.
            hooked: modules that are looked at in every step, which are left out too.
        """
        self.sites: list[Site] = []
        self._modules: list[nn.Module] = []
        self._handles: list[Any] = []
        # the loss calls the output layer as a function
        head = next((m.get_output_embeddings() for m in model.modules() if isinstance(m, PreTrainedModel)), None)
        modules = {
            name: module
            for name, module in traced_modules(model).items()
            if not isinstance(module, (LoraLayer, nn.Dropout)) and module is not head and module not in hooked
        }

        def remember(name: str, module: nn.Module) -> Callable[..., None]:
            def hook(_module: nn.Module, _args: Any, output: Any) -> None:
                if module not in self._modules and (tensor := first_float(output)) is not None:
                    dtype = str(tensor.dtype).removeprefix("torch.")
                    at = len(self.sites)
                    self.sites.append(
                        Site(first_id + at, name, "out", tuple(tensor.shape[-1:]), dtype, first_order + at)
                    )
                    self._modules.append(module)

            return hook

        self._handles = [module.register_forward_hook(remember(name, module)) for name, module in modules.items()]
        try:
            run_once()
        finally:
            self.end()

    def begin(self, record: Callable[[int, torch.Tensor], None]) -> None:
        """Hands the next outputs to `record`, with the id of their site, until `end`."""
        for site, module in zip(self.sites, self._modules, strict=True):
            self._handles.append(module.register_forward_hook(Hook(_hand_on(record, site.id))))

    def end(self) -> None:
        """Takes the hooks off the model."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


def _hand_on(record: Callable[[int, torch.Tensor], None], row: int) -> Callable[..., None]:
    def hook(_module: nn.Module, _args: Any, output: Any) -> None:
        tensor = first_float(output)
        if tensor is not None:
            record(row, tensor.detach())

    return hook


def first_float(output: Any) -> torch.Tensor | None:
    """The first float tensor of a module's output."""
    return next((t for t in tree_leaves(output) if isinstance(t, torch.Tensor) and t.is_floating_point()), None)
