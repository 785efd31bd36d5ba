"""Replaces the forward of PEFT's LoRA linears by the fused operator, and says which it could not replace.

    module.forward(x)  ->  lora_linear(x, W, A, B, ...)   for a LoRA linear that is alone
                           one call for all of them       where modules read the same input (q, k, v; gate, up)

Modules that read the same input are found by running the model once on a few tokens: nothing here knows an
architecture. The first of a group computes the outputs of all, and the others are handed theirs when they are called
with the very same tensor; called with another one, a module computes alone. Only `forward` of the instances is
replaced, so saving, loading, merging, disabling and deleting adapters stay PEFT's own code, and the replaced forward
steps aside for whatever `served` does not know to be the plain case at the time of the call. A copy of the model has
PEFT's forward again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from types import MethodType
from typing import Any, Protocol

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from ...kernels.lora_linear import Examples, NF4Weight, lora_linear
from ...kernels.statistics.pending_rows import PendingRows
from .four_bit import is_4bit_linear
from .served import dropout_p, serves, why_not

MAX_SEED = 2**62  # of dropout masks


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
        recorded: gives the slot of the pass that begins now, if passes have slots of their own; None: not recorded.
        starts: where the examples of the micro-batch begin among its tokens, and their number; None: not known.
        squares: float64 [examples, 2 g] for those of their gradients (kernels/lora_linear/group.py), or None.
        lost_rows: told of a pass that counts in the gradient and not in the squares.
    """

    names: list[str]
    modules: list[nn.Module]
    slot: torch.Tensor | None = None
    pending: PendingRows | None = None
    observer: Observer | None = None
    recorded: Callable[[Group], torch.Tensor | None] | None = None
    starts: Sequence[int] | None = None
    squares: torch.Tensor | None = None
    lost_rows: Callable[[], None] | None = None
    _input: torch.Tensor | None = None
    _waiting: dict[int, tuple[torch.Tensor, tuple | None]] = field(default_factory=dict)

    def handed_out(self, index: int, x: torch.Tensor) -> torch.Tensor | None:
        """Output of module `index` if the first one has computed it for `x` and nothing has changed since."""
        if index not in self._waiting or self._input is not x:
            return None
        output, state = self._waiting.pop(index)
        if not self._waiting:
            self._input = None
        return output if state == _state(self.modules[index], x) else None

    def forward(self, index: int, x: torch.Tensor) -> torch.Tensor:
        """Output of module `index`, which is served, for `x`."""
        if index == 0 and self._serves_all(x):
            return self._lead(x)
        if self.lost_rows is not None and torch.is_grad_enabled():
            self.lost_rows()
        return _fused(x, [self.modules[index]], None, None, self._examples(x, None))[0]

    def _examples(self, x: torch.Tensor, squares: torch.Tensor | None) -> Examples | None:
        """Those of x, if it has the micro-batch's tokens, or one token for each example."""
        if self.starts is None:
            return None
        n_tokens = x.numel() // max(x.shape[-1], 1)
        if n_tokens in (self.starts[-1], len(self.starts) - 1):
            return Examples(self.starts if n_tokens == self.starts[-1] else range(n_tokens + 1), squares)
        if squares is not None and self.lost_rows is not None:
            self.lost_rows()
        return None

    def _serves_all(self, x: torch.Tensor) -> bool:
        """Whether one call computes all of them: the first is served, and one dropout mask serves every module."""
        others = self.modules[1:]
        if not others:
            return True
        p = dropout_p(self.modules[0])
        return all(serves(module, x) and dropout_p(module) == p for module in others)

    def _lead(self, x: torch.Tensor) -> torch.Tensor:
        key = x
        slot = self.slot if self.recorded is None else self.recorded(self)
        observer = self.observer if slot is not None else None
        if observer is not None:
            x = observer.input(self, x)
        squares = None if slot is None else self.squares
        outputs = _fused(x, self.modules, slot, self.pending, self._examples(x, squares))
        if observer is not None:
            outputs = observer.outputs(self, outputs)
        others = zip(outputs[1:], self.modules[1:], strict=True)
        self._waiting = {i: (y, _state(module, key)) for i, (y, module) in enumerate(others, start=1)}
        self._input = key if self._waiting else None
        return outputs[0]


@dataclass(frozen=True)
class Layer:
    """A module that is recorded and has no LoRA, or what of a LoRA layer is trained beside its two matrices.

    Attributes:
        name: in the base model.
        tensors: what hooks read, of `in`, `out`, `grad_out`, `grad_in`.
        parameters: what is trained, by the name of its site's tensor: `weight.grad`.
    """

    name: str
    module: nn.Module
    tensors: tuple[str, ...]
    parameters: dict[str, nn.Parameter]


@dataclass(frozen=True)
class Patched:
    """What `patch` did.

    Attributes:
        groups: fused modules, in forward order.
        unfused: LoRA modules that stay on PEFT's path: (name, module, reason), in forward order.
        others: what else is recorded (hooks/layers.py).
    """

    groups: list[Group]
    unfused: list[tuple[str, nn.Module, str]]
    others: list[Layer] = field(default_factory=list)

    def cut_at(self, starts: Sequence[int] | None) -> None:
        """Tells every group where the examples of the next micro-batch begin: sums are cut there, recorded or not."""
        for group in self.groups:
            group.starts = starts


def base_name(name: str, prefix: str = "base_model.model.") -> str:
    """A module's name in the base model, without PEFT's prefixes."""
    return name.removeprefix(prefix).replace(".base_layer", "")


def base_prefix(model: nn.Module) -> str:
    """What stands before the base model's own names: a tuner wraps it, a prompt stands beside it."""
    if not isinstance(model, PeftModel) or isinstance(model.base_model, BaseTuner):
        return "base_model.model."
    return "base_model."


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
    calls = first_calls(modules, run_once)
    order = [name for name, _ in calls] + [name for name in modules if name not in dict(calls)]
    groups: list[Group] = []
    last_input: object = None
    inputs = dict(calls)
    for name in order:
        if why_not(modules[name]):
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
            _replace(group, index, module)
    unfused = [(name, modules[name], why_not(modules[name])) for name in order if why_not(modules[name])]
    return Patched(groups, unfused)


def on_hooks(model: nn.Module, run_once: Callable[[], Any]) -> Patched:
    """Every LoRA layer in the order of its first call, on PEFT's path: the recorder looks at them with hooks."""
    modules = lora_modules(model)
    called = [name for name, _ in first_calls(modules, run_once)]
    order = called + [name for name in modules if name not in called]
    return Patched([], [(name, modules[name], "") for name in order])


def unpatch(patched: Patched) -> None:
    """Gives the modules the forward back that they had; one that was replaced again since is left alone."""
    for group in patched.groups:
        for module in group.modules:
            replaced = fused_forward(module)
            if replaced is not None and replaced.group is group:
                del module.forward
                if replaced.before is not None:
                    module.forward = replaced.before


class FusedForward:
    """The forward of one module of a group; `forward`, a method, is what torch.compile knows how to compare.

    Attributes:
        group: whose outputs are computed together; None in a copy of the model, which computes as PEFT does.
        before: what stood in for the class's forward before, or None.
    """

    def __init__(self, group: Group | None, index: int, module: nn.Module, before: Any = None):
        self.group, self._index, self._module, self.before = group, index, module, before
        self._own = before or MethodType(type(module).forward, module)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args or kwargs or self.group is None:
            return self._own(x, *args, **kwargs)
        if self.group.recorded is not None and torch.compiler.is_compiling():
            return _outside(self, x)
        return self.compute(x)

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        assert self.group is not None
        output = self.group.handed_out(self._index, x)
        if output is not None:
            return output
        return self.group.forward(self._index, x) if serves(self._module, x) else self._own(x)

    def __reduce__(self) -> tuple:
        return FusedForward, (None, self._index, self._module, self.before)


def _compute(fused: FusedForward, x: torch.Tensor) -> torch.Tensor:
    return fused.compute(x)


# Not in the graph that torch.compile traces: what is recorded changes from pass to pass.
_outside: Any = torch.compiler.disable(_compute)


def fused_forward(module: nn.Module) -> FusedForward | None:
    """What replaces the module's forward now, if that is of this file."""
    found = getattr(module.__dict__.get("forward"), "__self__", None)
    return found if isinstance(found, FusedForward) else None


def _replace(group: Group, index: int, module: nn.Module) -> None:
    again = fused_forward(module)  # of a recording that has not ended, or of the model this is a copy of
    before = again.before if again is not None else module.__dict__.get("forward")
    module.forward = FusedForward(group, index, module, before).forward


def _state(layer: Any, x: torch.Tensor) -> tuple | None:
    """What an output that was computed ahead depends on; nothing changes while torch.compile traces."""
    if torch.compiler.is_compiling():
        return None
    active = tuple(layer.active_adapters)
    if len(active) != 1 or active[0] not in layer.lora_A:
        return (active,)
    a, b = layer.lora_A[active[0]].weight, layer.lora_B[active[0]].weight
    weight = layer.get_base_layer().weight
    versions = [None if t.is_inference() else t._version for t in (x, a, b, weight)]
    is_on = layer.disable_adapters, tuple(layer.merged_adapters), layer.scaling[active[0]], layer.training
    dtype = torch.is_autocast_enabled(x.device.type) and torch.get_autocast_dtype(x.device.type)
    return (id(a), id(b), id(weight), *versions, *is_on, torch.is_grad_enabled(), dtype)


def _fused(
    x: torch.Tensor, layers: Sequence[Any], slot: torch.Tensor | None, pending: Any, examples: Examples | None
) -> list[torch.Tensor]:
    adapters = [layer.active_adapters[0] for layer in layers]
    p = dropout_p(layers[0])
    # Drawn here, from the generator that activation checkpointing restores: the recomputed mask is the same.
    seed = torch.randint(MAX_SEED, (1,), device=x.device) if p > 0 else None
    return lora_linear(
        x,
        [_weight(layer.get_base_layer()) for layer in layers],
        # 16-bit adapters are computed in float32, and autograd rounds their gradients
        [layer.lora_A[adapter].weight.float() for layer, adapter in zip(layers, adapters, strict=True)],
        [layer.lora_B[adapter].weight.float() for layer, adapter in zip(layers, adapters, strict=True)],
        [layer.scaling[adapter] for layer, adapter in zip(layers, adapters, strict=True)],
        biases=[layer.get_base_layer().bias for layer in layers],
        dropout_p=p,
        seed=seed,
        slot=slot,
        pending=pending,
        examples=examples,
    )


def _weight(linear: nn.Linear) -> torch.Tensor | NF4Weight:
    weight: Any = linear.weight
    if not is_4bit_linear(linear):
        return weight
    state = weight.quant_state
    packed = weight.data.view(torch.uint8)
    if not state.nested:
        return NF4Weight(packed, state.absmax, state.code, state.blocksize)
    inner = state.state2
    return NF4Weight(
        packed, state.absmax, state.code, state.blocksize, inner.absmax, inner.code, state.offset, inner.blocksize
    )


def first_calls(modules: dict[str, nn.Module], run_once: Callable[[], Any]) -> list[tuple[str, int]]:
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
