"""The gated activation of a decoder's MLP: two reads and one write of memory forward, three and two backward.

    y  = silu(g) u,  silu(g) = g s,  s = 1 / (1 + e^-g)
    du = dy silu(g)
    dg = dy u s (1 + g (1 - s))

Everything in fp32, rounded once. Keeps g and u; PyTorch's own keeps silu(g) too.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import cpu
from .backend import runs_directly


def gated_silu_reference(g: Tensor, u: Tensor) -> Tensor:
    """`gated_silu` in plain PyTorch."""
    return (F.silu(g.float()) * u.float()).to(g.dtype)


def gated_silu(g: Tensor, u: Tensor) -> Tensor:
    """silu(g) u.

    Args:
        g, u: fp32, fp16 or bf16, of one shape and dtype, on the CPU.

    Returns:
        Their shape and dtype.
    """
    return _Directly.apply(g, u) if runs_directly(g) else _forward(g, u)


def _compute(g: Tensor, u: Tensor) -> Tensor:
    g, u = g.contiguous(), u.contiguous()
    if cpu.AVAILABLE:
        return cpu.gate(g, u)
    return F.silu(g.float()).mul_(u).to(g.dtype)


_forward = torch.library.custom_op("lora_train::gated_silu", _compute, mutates_args=())


@_forward.register_fake
def _(g: Tensor, u: Tensor) -> Tensor:
    return torch.empty_like(g, memory_format=torch.contiguous_format)


def _compute_backward(dy: Tensor, g: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """dg, du."""
    dy, g, u = dy.contiguous(), g.contiguous(), u.contiguous()
    if cpu.AVAILABLE:
        return cpu.gate_backward(dy, g, u)
    g32, dy32 = g.float(), dy.float()
    dg = torch.ops.aten.silu_backward(dy32 * u, g32)
    return dg.to(g.dtype), F.silu(g32).mul_(dy32).to(g.dtype)


_backward = torch.library.custom_op("lora_train::gated_silu_backward", _compute_backward, mutates_args=())


@_backward.register_fake
def _(dy: Tensor, g: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(g), torch.empty_like(g)


def _keep(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx, dy: Tensor):
    return _backward(dy, *ctx.saved_tensors)


_forward.register_autograd(_differentiate, setup_context=_keep)


class _Directly(torch.autograd.Function):
    """The same without the dispatcher."""

    @staticmethod
    def forward(ctx, g, u):
        ctx.save_for_backward(g, u)
        return _compute(g, u)

    @staticmethod
    def backward(ctx, dy):  # type: ignore[reportIncompatibleMethodOverride]
        return _compute_backward(dy, *ctx.saved_tensors)
