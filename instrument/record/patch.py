"""Replaces the forward of PEFT's LoRA linears by the fused operator, and says which it could not replace.

    module.forward(x)  ->  lora_linear(x, W, A, B, ...)   for a LoRA linear that is alone
                           one call for all of them       where modules read the same input (q, k, v; gate, up)

Modules that read the same input are found by running the model once on a few tokens: nothing here knows an
architecture. The first of a group computes the outputs of all, and the others are handed theirs when they are called
with the very same tensor; called with another one, a module computes alone. Only `forward` of the instances is
replaced, so saving, loading, merging, disabling and deleting adapters stay PEFT's own code, and while an adapter is
merged or disabled the replaced forward steps aside.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from ...kernels.lora_linear import NF4Weight, lora_linear
from ...kernels.statistics.pending_rows import PendingRows
from .four_bit import is_4bit_linear

# Random seeds of dropout masks.
MAX_SEED = 2**62


class Observer(Protocol):
    """Looks at the tensors of a group on the steps that ask for it; returns them, or views of them with hooks."""

    def input(self, group: Group, x: torch.Tensor) -> torch.Tensor: ...

    def outputs(self, group: Group, outputs: list[torch.Tensor]) -> list[torch.Tensor]: ...


@dataclass(eq=False)
class Group:
    """LoRA linears that read the same input.

    Attributes:
        names: their names in the base model, in the order they are called.
        modules: PEFT's layers.
        slot: float64 [2 + 4 g, 9] for the statistics of the next forward and its backward (the layout of
            kernels/lora_linear/__init__.py), or None.
        pending: where rows of the slot wait to be written together with those of other groups, or None.
        observer: on a step that looks closer, else None.
    """

    names: list[str]
    modules: list[nn.Module]
    slot: torch.Tensor | None = None
    pending: PendingRows | None = None
    observer: Observer | None = None
    _input: torch.Tensor | None = None
    _waiting: dict[int, torch.Tensor] = field(default_factory=dict)

    def forward(self, index: int, x: torch.Tensor) -> torch.Tensor:
        """Output of module `index` for `x`."""
        if index == 0 and all(_why_not(module) == "" and _is_on(module) for module in self.modules):
            return self._lead(x)
        if index in self._waiting and self._input is x:
            output = self._waiting.pop(index)
            if not self._waiting:
                self._input = None
            return output
        return _fused(x, [self.modules[index]], None)[0]

    def _lead(self, x: torch.Tensor) -> torch.Tensor:
        key = x
        if self.observer is not None:
            x = self.observer.input(self, x)
        outputs = _fused(x, self.modules, self.slot, self.pending)
        if self.observer is not None:
            outputs = self.observer.outputs(self, outputs)
        self._waiting = dict(enumerate(outputs[1:], start=1))
        self._input = key if self._waiting else None
        return outputs[0]


@dataclass(frozen=True)
class Patched:
    """What `patch` did.

    Attributes:
        groups: fused modules, in forward order.
        unfused: LoRA modules that stay on PEFT's path: (name, module, reason), in forward order.
    """

    groups: list[Group]
    unfused: list[tuple[str, nn.Module, str]]


def base_name(name: str) -> str:
    """A module's name in the base model, without PEFT's prefixes."""
    return name.removeprefix("base_model.model.").replace(".base_layer", "")


def lora_modules(model: nn.Module) -> dict[str, Any]:
    """The LoRA layers of a model by their name in the base model."""
    return {base_name(name): module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def patch(model: nn.Module, run_once: Callable[[], Any], alone: Collection[str] = ()) -> Patched:
    """Replaces the forward of every LoRA linear that the fused operator can compute.

    Args:
        model: a PEFT model, or any model with PEFT's LoRA layers in it.
        run_once: runs the model's forward on a few tokens; called once, without gradient.
        alone: names of modules that share no call, whatever they read.
    """
    modules = lora_modules(model)
    calls = _first_calls(modules, run_once)
    order = [name for name, _ in calls] + [name for name in modules if name not in dict(calls)]
    groups: list[Group] = []
    last_input: object = None
    inputs = dict(calls)
    for name in order:
        if _why_not(modules[name]):
            last_input = None
            continue
        if groups and name in inputs and inputs[name] == last_input and name not in alone:
            groups[-1].names.append(name)
            groups[-1].modules.append(modules[name])
        else:
            groups.append(Group([name], [modules[name]]))
        last_input = object() if name in alone else inputs.get(name, object())
    for group in groups:
        for index, module in enumerate(group.modules):
            module.forward = _forward(group, index, module)
    unfused = [(name, modules[name], _why_not(modules[name])) for name in order if _why_not(modules[name])]
    return Patched(groups, unfused)


def on_hooks(model: nn.Module, run_once: Callable[[], Any]) -> Patched:
    """Every LoRA layer in the order of its first call, on PEFT's path: the recorder looks at them with hooks."""
    modules = lora_modules(model)
    called = [name for name, _ in _first_calls(modules, run_once)]
    order = called + [name for name in modules if name not in called]
    return Patched([], [(name, modules[name], "") for name in order])


def unpatch(patched: Patched) -> None:
    """Gives the modules PEFT's forward back."""
    for group in patched.groups:
        for module in group.modules:
            del module.forward


def _forward(group: Group, index: int, module: nn.Module) -> Callable[..., torch.Tensor]:
    peft_forward = module.forward

    def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args or kwargs or not _is_on(module):
            return peft_forward(x, *args, **kwargs)
        return group.forward(index, x)

    return forward


def _is_on(module: Any) -> bool:
    return not module.disable_adapters and not module.merged


def _why_not(layer: Any) -> str:
    """Why the fused operator cannot compute this layer, as a word for the catalogue; empty if it can."""
    weight_holder = layer.get_base_layer()
    if not isinstance(weight_holder, nn.Linear):
        return "patch.not_linear"
    if len(layer.active_adapters) != 1 or layer.active_adapters[0] not in layer.lora_A:
        return "patch.several_adapters"
    if any(parameter.requires_grad for parameter in weight_holder.parameters()):
        return "patch.trained"
    adapter = layer.active_adapters[0]
    if adapter in layer.lora_variant:
        return "patch.variant"
    if layer.lora_B[adapter].bias is not None:
        return "patch.lora_bias"
    if layer.lora_A[adapter].weight.dtype != torch.float32:
        return "patch.not_float32"
    if getattr(layer, "fan_in_fan_out", False):
        return "patch.transposed"
    if is_4bit_linear(weight_holder):
        packed: Any = weight_holder.weight
        state = packed.quant_state
        return "" if state is not None and state.quant_type == "nf4" else "patch.not_nf4"
    return "" if weight_holder.weight.dtype in (torch.float32, torch.float16, torch.bfloat16) else "patch.quantized"


def _fused(
    x: torch.Tensor, layers: Sequence[Any], slot: torch.Tensor | None, pending: PendingRows | None = None
) -> list[torch.Tensor]:
    adapters = [layer.active_adapters[0] for layer in layers]
    dropout = layers[0].lora_dropout[adapters[0]]
    p = dropout.p if isinstance(dropout, nn.Dropout) and layers[0].training else 0.0
    # Drawn here, from the generator that activation checkpointing restores: the recomputed mask is the same.
    seed = torch.randint(MAX_SEED, (1,), device=x.device) if p > 0 else None
    return lora_linear(
        x,
        [_weight(layer.get_base_layer()) for layer in layers],
        [layer.lora_A[adapter].weight for layer, adapter in zip(layers, adapters, strict=True)],
        [layer.lora_B[adapter].weight for layer, adapter in zip(layers, adapters, strict=True)],
        [layer.scaling[adapter] for layer, adapter in zip(layers, adapters, strict=True)],
        biases=[layer.get_base_layer().bias for layer in layers],
        dropout_p=p,
        seed=seed,
        slot=slot,
        pending=pending,
    )


def _weight(linear: nn.Linear) -> torch.Tensor | NF4Weight:
    if not is_4bit_linear(linear):
        return linear.weight
    weight: Any = linear.weight
    state = weight.quant_state
    packed = weight.data.view(torch.uint8)
    if not state.nested:
        return NF4Weight(packed, state.absmax, state.code, state.blocksize)
    inner = state.state2
    return NF4Weight(
        packed, state.absmax, state.code, state.blocksize, inner.absmax, inner.code, state.offset, inner.blocksize
    )


def _first_calls(modules: dict[str, nn.Module], run_once: Callable[[], Any]) -> list[tuple[str, int]]:
    """The modules in the order of their first call, each with a number that names its input tensor."""
    calls: dict[str, int] = {}
    alive: list[torch.Tensor] = []  # an id names a tensor only while it lives

    def remember(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            if name not in calls and args:
                alive.append(args[0])
                calls[name] = id(args[0])

        return hook

    handles = [module.register_forward_pre_hook(remember(name)) for name, module in modules.items()]
    try:
        with torch.no_grad():
            run_once()
    finally:
        for handle in handles:
            handle.remove()
    return list(calls.items())
