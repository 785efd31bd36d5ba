"""Norms, activations, gates and rotary embeddings of the base model by kernels that read memory once.

Nothing here knows an architecture: a module is replaced if it looks like one of these and computes the same on random
numbers, or is torch's own class. What is not recognized stays as it is. LayerNorm and GELU without a gate are ATen's
on the CPU already, and replaced where Triton runs. Only `forward` of instances is replaced, and one function of the
module that defines the architecture; modules keep their names, weights and hooks.

Results have the dtype that the model's own would have, under autocast too, with two exceptions that save a pass over
memory: rotated heads, and a GELU written out with `pow`, stay 16-bit where type promotion or CUDA's autocast would make
them fp32. What reads them, attention and a linear, would round them to the same values.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels.backend import uses_triton, uses_triton_on
from ...kernels.elementwise.gated import ACTIVATIONS, gated, gated_reference
from ...kernels.elementwise.gelu import gelu, gelu_reference
from ...kernels.elementwise.layer_norm import layer_norm
from ...kernels.elementwise.rms_norm import rms_norm, rms_norm_reference
from ...kernels.elementwise.rotary import rotary, rotary_reference
from ...kernels.statistics.tensor_stats import FAST_DTYPES

ROTARY = "apply_rotary_pos_emb"
AGREE = 1e-5


@dataclass
class FastPath:
    """What was replaced: names of modules by kind; `rotary` of the architecture's own function."""

    norms: list[str] = field(default_factory=list)
    gated: list[str] = field(default_factory=list)
    gelus: list[str] = field(default_factory=list)
    rotary: bool = False


def take_fast_path(base: nn.Module, device: torch.device | None = None) -> FastPath:
    """Replaces what is recognized in a frozen base model, before it gets an adapter or hooks.

    Args:
        device: where it will run, if that is not where its weights are.
    """
    found = FastPath()
    device = device or next(base.parameters()).device
    with_triton = uses_triton_on(device)
    if device.type != "cpu" and not with_triton:
        return found
    inside = "."
    for name, module in base.named_modules():
        if (offset := _norm_offset(module)) is not None:
            module.forward = _rms_norm_forward(module, offset)
            found.norms.append(name)
        elif with_triton and _is_layer_norm(module):
            module.forward = _layer_norm_forward(module)
            found.norms.append(name)
        elif act := _gate(module, list(ACTIVATIONS) if with_triton else ["silu"]):
            module.forward = _gated_forward(module, act)
            found.gated.append(name)
            inside = f"{name}."  # its activation is no longer called
        elif with_triton and not name.startswith(inside) and (act := _gelu(module)):
            module.forward = _gelu_forward(module, act)
            found.gelus.append(name)
    found.rotary = _replace_rotary(sys.modules[type(base).__module__])
    return found


def _norm_offset(module: nn.Module) -> float | None:
    """What is added to the weight (0 for LLaMA, 1 for Gemma) if the module is an RMSNorm, else None."""
    weight, eps = getattr(module, "weight", None), _eps(module)
    if not type(module).__name__.endswith("RMSNorm") or not isinstance(weight, nn.Parameter) or eps is None:
        return None
    if weight.ndim != 1 or weight.requires_grad or list(module.children()):
        return None
    x = _random(3, weight.shape[0]).to(weight.dtype)
    # with weights of our own: the module's may be on no device yet, or all ones
    probe: Any = copy.deepcopy(module)
    probe.weight = nn.Parameter(_random(weight.shape[0]).to(weight.dtype), requires_grad=False)
    with torch.no_grad():
        expected = probe(x)
        for offset in (0.0, 1.0):
            if _same(rms_norm_reference(x, probe.weight, eps, offset), expected):
                return offset
    return None


def _eps(module: nn.Module) -> float | None:
    for name in ("variance_epsilon", "eps"):
        if isinstance(getattr(module, name, None), float):
            return getattr(module, name)
    return None


def _rms_norm_forward(module: Any, offset: float) -> Callable[[Tensor], Tensor]:
    own, eps = module.forward, _eps(module)
    assert eps is not None
    is_torchs = isinstance(module, nn.RMSNorm)

    def forward(x: Tensor) -> Tensor:
        weight = module.weight
        # the result's dtype is the architecture's business, or autocast's
        if x.dtype != weight.dtype or (is_torchs and _under_cuda_autocast(x)):
            return own(x)
        return rms_norm(x, weight, eps, offset=offset)

    return forward


def _is_layer_norm(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.LayerNorm)
        and type(module).forward is nn.LayerNorm.forward
        and len(module.normalized_shape) == 1
        and module.elementwise_affine
        and not any(parameter.requires_grad for parameter in module.parameters())
    )


def _layer_norm_forward(module: Any) -> Callable[[Tensor], Tensor]:
    own = module.forward

    def forward(x: Tensor) -> Tensor:
        widens = _under_cuda_autocast(x)
        if x.dtype not in FAST_DTYPES or (x.dtype != module.weight.dtype and not widens):
            return own(x)
        return layer_norm(x, module.weight, module.bias, module.eps, dtype=torch.float32 if widens else None)

    return forward


def _gate(module: Any, acts: list[str]) -> str | None:
    """Which of the activations a gated MLP has, if the module is one."""
    parts = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    if not all(isinstance(part, nn.Module) for part in parts) or len(list(module.parameters(recurse=False))):
        return None
    if not hasattr(module, "act_fn") or {name for name, _ in module.named_children()} - {
        "gate_proj", "up_proj", "down_proj", "act_fn",
    }:  # fmt: skip
        return None
    g, u = _everywhere(), _random(len(_everywhere()))
    with torch.no_grad():
        expected = module.act_fn(g) * u
        return next((act for act in acts if _same(gated_reference(g, u, act), expected)), None)


def _gated_forward(module: Any, act: str) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        return module.down_proj(gated(module.gate_proj(x), module.up_proj(x), act))

    return forward


def _gelu(module: nn.Module) -> str | None:
    """Which GELU a module is, if it is one."""
    if "gelu" not in type(module).__name__.lower() or list(module.parameters()) or list(module.children()):
        return None
    with torch.no_grad():
        expected = module(_everywhere())
        return next((act for act in ("gelu", "gelu_tanh") if _same(gelu_reference(_everywhere(), act), expected)), None)


def _gelu_forward(module: Any, act: str) -> Callable[[Tensor], Tensor]:
    own = module.forward

    def forward(x: Tensor) -> Tensor:
        return gelu(x, act) if x.dtype in FAST_DTYPES else own(x)

    return forward


def _replace_rotary(architecture: Any) -> bool:
    """Replaces the function in the architecture's own module, once for the process."""
    own = getattr(architecture, ROTARY, None)
    if own is None or hasattr(own, "replaces"):
        return own is not None
    q, k, cos, sin = _random(2, 3, 5, 8), _random(2, 1, 5, 8), _random(1, 5, 8), _random(1, 5, 8)
    try:
        expected = own(q, k, cos, sin)
    except (TypeError, ValueError, RuntimeError):
        return False
    if not all(_same(rotary_reference(x, cos, sin), y) for x, y in zip((q, k), expected, strict=True)):
        return False

    def apply_rotary_pos_emb(
        q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        served = q.dtype in FAST_DTYPES and (q.device.type == "cpu" or uses_triton(q))
        if args or kwargs or not served or cos.ndim != 3:
            return own(q, k, cos, sin, *args, **kwargs)
        return rotary(q, cos, sin), rotary(k, cos, sin)

    apply_rotary_pos_emb.replaces = own  # pyright: ignore[reportFunctionMemberAccess]
    setattr(architecture, ROTARY, apply_rotary_pos_emb)
    return True


def give_rotary_back() -> None:
    """Every architecture has its own function again: for a process that goes on after a run, as a notebook's does."""
    for architecture in list(sys.modules.values()):
        own = getattr(vars(architecture).get(ROTARY), "replaces", None)
        if own is not None:
            setattr(architecture, ROTARY, own)


def _under_cuda_autocast(x: Tensor) -> bool:
    """Where torch's own norms return fp32; under the CPU's autocast they do not."""
    return x.is_cuda and torch.is_autocast_enabled("cuda")


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _everywhere() -> Tensor:
    """Where activations bend, and far beyond, where some are clipped."""
    return torch.cat([torch.linspace(-6, 6, 241), torch.linspace(-1000, 1000, 17)])


def _same(ours: Tensor, theirs: Tensor) -> bool:
    tolerance = max(AGREE, 4 * torch.finfo(theirs.dtype).eps)
    return ours.dtype == theirs.dtype and torch.allclose(ours.float(), theirs.float(), rtol=tolerance, atol=tolerance)
