"""What is recorded of a model besides PEFT's LoRA layers: its linears, layers of other adapters, all that is trained.

    out, grad_out            of a linear that is trained, and of every linear where no layer has LoRA
    in, out, grad_out, grad_in   of a layer of another adapter (LoHa, IA3, VeRA, ...)
    <parameter>.grad         of everything trained: weight.grad, bias.grad, hada_w1_a.grad, lora_magnitude_vector.grad

Names are those of the base model; a parameter inside of an adapter's layer belongs to that layer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D

from ..patch import Layer, Patched, base_name, base_prefix, first_calls
from ..served import lora_parameter

OF_ADAPTER = ("in", "out", "grad_out", "grad_in")
OF_LINEAR = ("out", "grad_out")
# PEFT's wrappers of a module that is trained as a whole, or of a few of its rows.
_WRAPPERS = re.compile(r"\.modules_to_save\.[^.]+|\.token_adapter")


def other_layers(model: nn.Module, patched: Patched, run_once: Callable[[], Any]) -> list[Layer]:
    """Everything that `patched` does not cover, in the order of the first calls.

    Args:
        run_once: runs the model's forward on a few tokens; called once, without gradient.
    """
    has_lora, seen = bool(patched.groups or patched.unfused), set[int]()
    wanted: dict[str, Layer] = {}
    for name, module in _named(model):
        parameters = {tensor: p for tensor, p in _trained(module) if id(p) not in seen}
        seen |= {id(parameter) for parameter in parameters.values()}
        if tensors := _hooked(module, bool(parameters), has_lora):
            wanted[name] = Layer(name, module, tensors, parameters)
        elif parameters:
            wanted[name] = Layer(name, module, (), parameters)
    called = [name for name, _ in first_calls({name: layer.module for name, layer in wanted.items()}, run_once)]
    order = called + [name for name in wanted if name not in called]
    trained = [at for at, name in enumerate(order) if wanted[name].parameters]
    first = 0 if has_lora or not trained or trained[-1] >= len(called) else trained[0]
    return [_reached(wanted[name]) if at < first else wanted[name] for at, name in enumerate(order)]


def _hooked(module: nn.Module, is_trained: bool, has_lora: bool) -> tuple[str, ...]:
    if isinstance(module, LoraLayer):
        return ()
    if isinstance(module, BaseTunerLayer):
        return OF_ADAPTER
    return OF_LINEAR if is_linear(module) and (is_trained or not has_lora) else ()


def _reached(layer: Layer) -> Layer:
    """A frozen layer before everything that is trained: no gradient comes there."""
    return replace(layer, tensors=tuple(tensor for tensor in layer.tensors if tensor == "out"))


def is_linear(module: nn.Module) -> bool:
    """Whether it is a matrix product that is called as a module: attention of torch reads its last one's weight."""
    return isinstance(module, (nn.Linear, Conv1D)) and not isinstance(module, NonDynamicallyQuantizableLinear)


def _named(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The modules by their names in the base model: an adapter's layer whole, of a wrapper what is trained."""
    prefix, inside = base_prefix(model), "\0"
    for name, module in model.named_modules():
        if name.startswith(inside) or ".original_module" in name:
            continue
        if isinstance(module, BaseTunerLayer):
            inside = name + "."
        yield _WRAPPERS.sub("", base_name(name, prefix)), module


def _trained(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The trained parameters of a module itself, of an adapter's layer all in it, by the tensor of their site.

    Left out: lora_A and lora_B of the first adapter that is active and trained, which have sites already.
    """
    layer: Any = module if isinstance(module, BaseTunerLayer) else None
    adapters = [] if layer is None else list(layer.active_adapters)
    known, taken = set[int](), set[str]()
    if isinstance(module, LoraLayer):
        for side in ("lora_A", "lora_B"):
            held = [lora_parameter(module, side, adapter) for adapter in adapters]
            known |= {id(p) for p in [p for p in held if p is not None and p.requires_grad][:1]}
        taken = {"lora_A.grad", "lora_B.grad"}
    for name, parameter in module.named_parameters(recurse=layer is not None):
        if parameter.requires_grad and id(parameter) not in known:
            parts = name.removeprefix("base_layer.").split(".")
            short = [part for part in parts if part not in adapters]
            short = short[:-1] if layer is not None and len(short) > 1 and short[-1] == "weight" else short
            tensor = ".".join(short) + ".grad"
            tensor = ".".join(parts) + ".grad" if tensor in taken else tensor
            taken.add(tensor)
            yield tensor, parameter
