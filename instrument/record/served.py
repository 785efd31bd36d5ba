"""Whether the fused operator gives what PEFT's own forward of a layer would give, as the layer is at this moment.

Asked at every call: adapters are added, switched, deleted, merged and disabled while a model is patched, and a layer
can be wrapped or get hooks of somebody else's. Whatever is not known to be the plain case is PEFT's.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear, LoraLayer
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from .four_bit import is_4bit_linear

DEVICES = ("cpu", "cuda")
PLAIN_WEIGHTS = (nn.Parameter, torch.Tensor, FakeTensor)  # of a dry run a weight is a FakeTensor
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def why_not(layer: Any) -> str:
    """Why the fused operator cannot compute this layer, as a word for the catalogue; empty if it can."""
    holder = layer.get_base_layer()
    if not isinstance(holder, nn.Linear):
        return "patch.not_linear"
    if not is_4bit_linear(holder) and holder.weight.dtype not in DTYPES:
        return "patch.quantized"
    if not _is_plain_layer(layer) or layer.base_layer is not holder:
        return "patch.other_layer"
    lora_A, lora_B = layer.lora_A, layer.lora_B
    active = layer.active_adapters
    if len(active) != 1 or active[0] not in lora_A:
        return "patch.several_adapters"
    adapter = active[0]
    weight, bias = holder.weight, holder.bias
    if weight.requires_grad or (bias is not None and bias.requires_grad):
        return "patch.trained"
    if adapter in layer.lora_variant:
        return "patch.variant"
    a, b = lora_A[adapter], lora_B[adapter]
    if getattr(b, "bias", None) is not None:
        return "patch.lora_bias"
    if not (_is_plain_linear(a) and _is_plain_linear(b)) or _dropout_of(layer, adapter) is None:
        return "patch.other_layer"
    if a.weight.dtype not in DTYPES or b.weight.dtype not in DTYPES:
        return "patch.adapter_dtype"
    if getattr(layer, "fan_in_fan_out", False):
        return "patch.transposed"
    if _is_hooked(holder):
        return "patch.other_layer"
    if is_4bit_linear(holder):
        state: Any = getattr(weight, "quant_state", None)
        return "" if state is not None and state.quant_type == "nf4" else "patch.not_nf4"
    if type(weight) not in PLAIN_WEIGHTS:
        return "patch.quantized"
    return "" if type(holder).forward is nn.Linear.forward else "patch.other_layer"


def serves(layer: Any, x: torch.Tensor) -> bool:
    """Whether the fused operator computes the layer for this input now."""
    if layer.disable_adapters or layer.merged or why_not(layer):
        return False
    device = layer.get_base_layer().weight.device
    return x.device == device and device.type in DEVICES and not _under_functorch()


def dropout_p(layer: Any) -> float:
    """Probability that a value of the LoRA branch's input is dropped now."""
    dropout = layer.lora_dropout[layer.active_adapters[0]]
    return dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0


def lora_parameter(layer: LoraLayer, side: str, adapter: str) -> nn.Parameter | None:
    """`lora_A` or `lora_B` of an adapter: of a linear, of an embedding, or where an adapter's own kind keeps it."""
    for name in (side, side.replace("lora_", "lora_embedding_")):
        held: Any = getattr(layer, name, {})
        if adapter in held:
            found: Any = held[adapter]
            return found if isinstance(found, nn.Parameter) else getattr(found, "weight", None)
    return None


def _is_plain_layer(layer: Any) -> bool:
    """PEFT's LoRA linear, or that of 4-bit weights; adapters of other kinds inherit from LoraLayer too."""
    forward = type(layer).forward
    if forward is Linear.forward:
        return True
    return (forward.__module__, forward.__qualname__) == ("peft.tuners.lora.bnb", "Linear4bit.forward")


def _is_plain_linear(module: Any) -> bool:
    return type(module) is nn.Linear and type(module.weight) in PLAIN_WEIGHTS and not _is_hooked(module)


def _is_hooked(module: Any) -> bool:
    """Whether calling it does something else than its class says."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__)


def _dropout_of(layer: Any, adapter: str) -> nn.Module | None:
    if adapter not in layer.lora_dropout:
        return None
    dropout = layer.lora_dropout[adapter]
    return dropout if type(dropout) in (nn.Dropout, nn.Identity) else None


def _under_functorch() -> bool:
    """vmap, grad and jvp of torch.func, which want more of an operator than a gradient. torch.compile uses them too."""
    stack: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
    return not torch.compiler.is_compiling() and stack.peek_interpreter_stack() is not None
