"""RMSNorm with a frozen weight: one read and one write of memory forward, two reads and one write backward.

    y  = x rstd w,  rstd = 1 / sqrt(mean(x^2) + eps)           x [..., K], w [K]
    dx = rstd (w dy - x rstd^2 mean(w dy x))

Everything in fp32, rounded once to x's dtype. PyTorch's own is six operations forward and eleven backward, each
through memory, and keeps three tensors as large as x; this keeps x and one number a row.
"""

import torch
from torch import Tensor

from . import cpu
from .backend import runs_directly


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`rms_norm` in plain PyTorch."""
    values = x.float()
    normal = values * torch.rsqrt(values.square().mean(-1, keepdim=True) + eps)
    return (normal * weight.float()).to(x.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm of the last dimension.

    Args:
        x: fp32, fp16 or bf16 [..., K] on the CPU.
        weight: [K], frozen.

    Returns:
        [..., K] in x's dtype.
    """
    if runs_directly(x):
        return _Directly.apply(x, weight, eps)
    return _forward(x.reshape(-1, x.shape[-1]), weight, eps)[0].view(x.shape)


def _compute(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """y [M, K]; rstd fp32 [M]."""
    x = x.contiguous()
    if cpu.AVAILABLE:
        return cpu.norm(x, weight, eps)
    values = x.float()
    rstd = torch.linalg.vector_norm(values, dim=-1).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return (values * rstd[:, None]).mul_(weight.float()).to(x.dtype), rstd


_forward = torch.library.custom_op("lora_train::rms_norm", _compute, mutates_args=())


@_forward.register_fake
def _(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(x.shape[0], dtype=torch.float32)


def _compute_backward(dy: Tensor, x: Tensor, weight: Tensor, rstd: Tensor) -> Tensor:
    """dx [M, K]."""
    dy, x = dy.contiguous(), x.contiguous()
    if cpu.AVAILABLE:
        return cpu.norm_backward(dy, x, weight, rstd)
    values = x.float()
    weighted = dy.float() * weight.float()
    factor = (weighted * values).sum(-1).div_(x.shape[-1]).mul_(rstd.square())
    return weighted.addcmul_(values, factor[:, None], value=-1).mul_(rstd[:, None]).to(x.dtype)


_backward = torch.library.custom_op("lora_train::rms_norm_backward", _compute_backward, mutates_args=())


@_backward.register_fake
def _(dy: Tensor, x: Tensor, weight: Tensor, rstd: Tensor) -> Tensor:
    return torch.empty_like(x)


def _keep(ctx, inputs, output) -> None:
    x, weight, _ = inputs
    ctx.save_for_backward(x, weight, output[1])
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx, dy: Tensor, _):
    return _backward(dy, *ctx.saved_tensors), None, None


_forward.register_autograd(_differentiate, setup_context=_keep)


class _Directly(torch.autograd.Function):
    """The same without the dispatcher, and without views that autograd sees."""

    @staticmethod
    def forward(ctx, x, weight, eps):
        rows = x.reshape(-1, x.shape[-1])
        y, rstd = _compute(rows, weight, eps)
        ctx.save_for_backward(rows, weight, rstd)
        return y.view(x.shape)

    @staticmethod
    def backward(ctx, dy):  # type: ignore[reportIncompatibleMethodOverride]
        rows, weight, rstd = ctx.saved_tensors
        return _compute_backward(dy.reshape(rows.shape), rows, weight, rstd).view(dy.shape), None, None
