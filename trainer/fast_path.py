"""Norms, gated activations and rotary embeddings of the base model by kernels that read memory once.

Nothing here knows an architecture: a module is replaced if it looks like one of these and computes the same on random
numbers. What is not recognized stays as it is. On CUDA they come from Liger-Kernel, where it is installed and knows
the architecture. Only `forward` of instances is replaced, and one function of the module that defines the
architecture; modules keep their names, weights and hooks.
"""

from __future__ import annotations

import copy
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..kernels.backend import is_gpu
from ..kernels.gated import gated_silu
from ..kernels.rms_norm import rms_norm
from ..kernels.rotary import rotary

ROTARY = "apply_rotary_pos_emb"
AGREE = 1e-5


@dataclass
class FastPath:
    """What was replaced: names of modules by kind; `rotary` of the architecture's own function."""

    norms: list[str] = field(default_factory=list)
    gated: list[str] = field(default_factory=list)
    rotary: bool = False
    liger: bool = False


def take_fast_path(base: nn.Module, device: torch.device | None = None) -> FastPath:
    """Replaces what is recognized in a frozen base model, before it gets an adapter or hooks.

    Args:
        device: where it will run, if that is not where its weights are.
    """
    found = FastPath()
    device = device or next(base.parameters()).device
    if is_gpu(device):
        found.liger = _apply_liger(base)
        return found
    if device.type != "cpu":
        return found
    for name, module in base.named_modules():
        if (offset := _norm_offset(module)) is not None:
            module.forward = _norm_forward(module, offset)
            found.norms.append(name)
        elif _is_gated(module):
            module.forward = _gated_forward(module)
            found.gated.append(name)
    found.rotary = _replace_rotary(sys.modules[type(base).__module__])
    return found


def _apply_liger(base: nn.Module) -> bool:
    if importlib.util.find_spec("liger_kernel") is None:
        return False
    from liger_kernel.transformers import monkey_patch  # type: ignore[reportMissingImports]

    model_type = getattr(base.config, "model_type", "")
    if model_type not in monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN:
        return False
    # the loss is ours
    monkey_patch._apply_liger_kernel_to_instance(base, cross_entropy=False, fused_linear_cross_entropy=False)
    return True


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
            if _same(rms_norm(x, probe.weight + offset, eps), expected):
                return offset
    return None


def _eps(module: nn.Module) -> float | None:
    for name in ("variance_epsilon", "eps"):
        if isinstance(getattr(module, name, None), float):
            return getattr(module, name)
    return None


def _norm_forward(module: Any, offset: float) -> Callable[[torch.Tensor], torch.Tensor]:
    own, eps = module.forward, _eps(module)
    assert eps is not None

    def forward(x: torch.Tensor) -> torch.Tensor:
        weight = module.weight
        if x.dtype != weight.dtype:  # the result's dtype is the architecture's business
            return own(x)
        return rms_norm(x, weight + offset if offset else weight, eps)

    return forward


def _is_gated(module: Any) -> bool:
    parts = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    if not all(isinstance(part, nn.Module) for part in parts) or len(list(module.parameters(recurse=False))):
        return False
    if not hasattr(module, "act_fn") or {name for name, _ in module.named_children()} - {
        "gate_proj", "up_proj", "down_proj", "act_fn",
    }:  # fmt: skip
        return False
    g, u = _random(2, 64), _random(2, 64)
    with torch.no_grad():
        return _same(gated_silu(g, u), module.act_fn(g) * u)


def _gated_forward(module: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(x: torch.Tensor) -> torch.Tensor:
        return module.down_proj(gated_silu(module.gate_proj(x), module.up_proj(x)))

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
    if not all(_same(rotary(x, cos, sin), y) for x, y in zip((q, k), expected, strict=True)):
        return False

    def apply_rotary_pos_emb(
        q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if args or kwargs or q.device.type != "cpu" or q.dtype == torch.float64 or cos.ndim != 3:
            return own(q, k, cos, sin, *args, **kwargs)
        return rotary(q, cos, sin), rotary(k, cos, sin)

    apply_rotary_pos_emb.replaces = own  # pyright: ignore[reportFunctionMemberAccess]
    setattr(architecture, ROTARY, apply_rotary_pos_emb)
    return True


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _same(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    tolerance = max(AGREE, 4 * torch.finfo(theirs.dtype).eps)
    return ours.dtype == theirs.dtype and torch.allclose(ours.float(), theirs.float(), rtol=tolerance, atol=tolerance)
