"""Runs a model with hooks on every module, to find the one that turned finite inputs into something else.

    forward    origin = inputs finite, output not, and no module inside it is an origin itself
    backward   origin = gradient of the output finite, gradient of the input not, likewise

A module is the smallest thing named; `op` says which operation inside it did it (the product QK^T of eager attention,
gate * up, a residual sum). Where an fp32 tensor above fp16's range is rounded at the entrance of a linear, the module
that made the tensor is to blame. This is for a step that is looked at again: it reads the device at every module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from ...kernels.statistics.reduce import N_FIELDS
from ...kernels.statistics.tensor_stats import FIELDS
from .patch import Group, base_name, base_prefix


@dataclass
class Seen:
    """What passed through one side of a module.

    Attributes:
        n, n_nan, n_inf: values, NaNs and infinities.
        absmax: largest finite magnitude; NaN where the fused operator did not look.
    """

    n: int = 0
    n_nan: int = 0
    n_inf: int = 0
    absmax: float = 0.0

    @property
    def finite(self) -> bool:
        return self.n_nan + self.n_inf == 0

    def add(self, tensor: torch.Tensor) -> None:
        """Counts one more tensor."""
        values = tensor.detach().float()
        finite = values.isfinite()
        n_nan = int(values.isnan().sum())
        self.n += values.numel()
        self.n_nan += n_nan
        self.n_inf += int((~finite).sum()) - n_nan
        largest = torch.where(finite, values.abs(), 0.0)
        self.absmax = max(self.absmax, float(largest.max()) if values.numel() else 0.0)


@dataclass
class ModuleTrace:
    """One module of the model in the order of its first call."""

    name: str
    module: nn.Module
    order: int
    sides: dict[str, Seen] = field(default_factory=lambda: {side: Seen() for side in SIDES})
    producer: str | None = None
    """The module whose output is the input."""


SIDES = ("in", "out", "grad_out", "grad_in")


@dataclass(frozen=True)
class Origin:
    """The module that is to blame.

    Attributes:
        trace: what passed through it.
        phase: forward or backward.
        weights: "lora" or "base" where a weight of that kind is not finite, else None.
    """

    trace: ModuleTrace
    phase: str
    weights: str | None


class Tracer:
    """Hooks on every module of a model; `traces` fills as it runs."""

    def __init__(self, model: nn.Module, groups: list[Group], compute_dtype: torch.dtype):
        self._model, self._groups = model, groups
        self._limit = torch.finfo(compute_dtype).max
        self.traces: dict[str, ModuleTrace] = {}
        self._makers: dict[int, str] = {}
        self._slots: list[tuple[Group, torch.Tensor]] = []

    @contextmanager
    def active(self) -> Iterator[None]:
        """While it lasts, forward and backward are looked at."""
        handles = []
        for name, module in traced_modules(self._model).items():
            handles.append(module.register_forward_pre_hook(self._before(name), with_kwargs=True))
            handles.append(module.register_forward_hook(self._after(name)))
        for group in self._groups:
            device = group.modules[0].get_base_layer().weight.device  # pyright: ignore[reportCallIssue]
            slot = torch.full((2 + 4 * len(group.names), N_FIELDS), torch.nan, dtype=torch.float64, device=device)
            self._slots.append((group, slot))
            group.slot = slot
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for group in self._groups:
                group.slot = None
            self._read_slots()

    def _before(self, name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            trace = self.traces.setdefault(name, ModuleTrace(name, module, len(self.traces)))
            # a mask holds the lowest number of its dtype, on purpose
            looked_at = {key: value for key, value in kwargs.items() if key != "attention_mask"}
            floats = [t for t in tree_leaves((args, looked_at)) if _is_float(t)]
            for tensor in floats:
                trace.sides["in"].add(tensor)
                trace.producer = trace.producer or self._makers.get(tensor.data_ptr())
            if isinstance(module, LoraLayer):
                return args, kwargs  # a group knows its input by identity; the slot has the gradients
            return tree_map_only(torch.Tensor, lambda t: self._watched(trace, "grad_in", t), (args, kwargs))

        return hook

    def _after(self, name: str) -> Callable[..., Any]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            trace = self.traces[name]
            for tensor in tree_leaves(output):
                if _is_float(tensor):
                    trace.sides["out"].add(tensor)
                    self._makers[tensor.data_ptr()] = name
                    if tensor.requires_grad:
                        tensor.register_hook(lambda grad: trace.sides["grad_out"].add(grad))

        return hook

    def _watched(self, trace: ModuleTrace, side: str, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor, or a view of it whose gradient is this module's share alone."""
        if not (_is_float(tensor) and tensor.requires_grad) or isinstance(tensor, nn.Parameter):
            return tensor
        view = tensor.view_as(tensor)
        view.register_hook(lambda grad: trace.sides[side].add(grad))
        return view

    def _read_slots(self) -> None:
        """Gradients at fused modules, from the operator's own rows."""
        columns = [FIELDS.index(name) for name in ("n", "n_nan", "n_inf", "absmax")]
        for group, slot in self._slots:
            g = len(group.names)
            rows = slot[:, columns].nan_to_num(0.0).tolist()
            for index, name in enumerate(group.names):
                if name in self.traces:
                    sides = self.traces[name].sides
                    for side, row in (("grad_out", 1 + g + index), ("grad_in", 1 + 2 * g)):
                        n, n_nan, n_inf, absmax = rows[row]
                        sides[side] = Seen(int(n), int(n_nan), int(n_inf), absmax)

    def origin(self, phase: str, head: str | None) -> Origin | None:
        """The module that is to blame, if any is.

        Args:
            phase: forward or backward.
            head: name of the output layer, which the loss calls as a function: it is to blame for what is not finite
                after, or in the backward pass before, every module.
        """
        before, after = ("in", "out") if phase == "forward" else ("grad_out", "grad_in")
        found = [t for t in self.traces.values() if t.sides[before].finite and not t.sides[after].finite]
        names = {trace.name for trace in found}
        found = [t for t in found if not any(other.startswith(t.name + ".") for other in names)]
        if not found:
            return self._head(head, phase)
        # an input that is finite in the last module called can still be the loss's fault
        chosen = min(found, key=lambda t: t.order) if phase == "forward" else max(found, key=lambda t: t.order)
        if phase == "forward":
            chosen = self._maker_of_too_large(chosen)
        return Origin(chosen, phase, bad_weights(chosen.module))

    def _maker_of_too_large(self, trace: ModuleTrace) -> ModuleTrace:
        """The producer, if what it handed on cannot be held in the dtype that the module rounds it to."""
        is_linear = isinstance(trace.module, (LoraLayer, nn.Linear))
        if is_linear and trace.sides["in"].absmax > self._limit and trace.producer in self.traces:
            return self.traces[trace.producer]
        return trace

    def _head(self, head: str | None, phase: str) -> Origin | None:
        if head is None:
            return None
        trace = self.traces.get(head)
        if trace is None:
            modules = traced_modules(self._model)
            if head not in modules:
                return None
            trace = ModuleTrace(head, modules[head], len(self.traces))
        return Origin(trace, phase, bad_weights(trace.module))


def traced_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Every module by its name in the base model, without PEFT's wrappers and what is inside an adapter's layer."""
    found: dict[str, nn.Module] = {}
    inside: tuple[str, ...] = ()
    prefix = base_prefix(model)
    for name, module in model.named_modules():
        if name.startswith(inside) and inside:
            continue
        short = base_name(name, prefix)
        if short and short not in ("base_model", "base_model.model"):
            found[short] = module
        if isinstance(module, BaseTunerLayer):
            inside = (*inside, name + ".")
    return found


def bad_weights(module: nn.Module) -> str | None:
    """Which of a module's own weights are not finite: "lora" where they are trained, "base" where frozen, or None."""
    own = module.named_parameters(recurse=isinstance(module, BaseTunerLayer))
    for name, parameter in own:
        if parameter.is_floating_point() and not bool(torch.isfinite(parameter).all()):
            return "lora" if parameter.requires_grad or "lora_" in name else "base"
    return None


def _is_float(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


@dataclass
class FirstBadOp:
    """The first operation inside a module that gave something non-finite from finite inputs."""

    name: str
    inputs: tuple[Any, ...]
    kwargs: dict[str, Any]


class _Ops(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: FirstBadOp | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.found is None:
            inputs = [t for t in tree_leaves((args, kwargs)) if _is_float(t)]
            outputs = [t for t in tree_leaves(result) if _is_float(t) and t.numel()]
            if inputs and _all_finite(inputs) and not _all_finite(outputs):
                self.found = FirstBadOp(str(func), args, kwargs or {})
        return result


def _all_finite(tensors: list[torch.Tensor]) -> bool:
    return all(bool(torch.isfinite(t).all()) for t in tensors)


@contextmanager
def watch_ops(module: nn.Module) -> Iterator[_Ops]:
    """While it lasts, the operations in the module's forward are watched; `found` is then the first bad one."""
    ops = _Ops()
    replaced = module.__dict__.get("forward")
    forward = module.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        with ops:
            return forward(*args, **kwargs)

    module.forward = watched
    try:
        yield ops
    finally:
        if replaced is None:
            del module.forward
        else:
            module.forward = replaced
