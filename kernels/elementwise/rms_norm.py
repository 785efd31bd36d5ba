"""RMSNorm with a frozen weight: one read and one write of memory forward, two reads and one write backward.

    y  = x rstd v,  rstd = 1 / sqrt(mean(x^2) + eps),  v = w + offset     x [..., K], w [K]
    dx = rstd (v dy - x rstd^2 mean(v dy x))

Everything in fp32, rounded once to x's dtype. PyTorch's own is six operations forward and eleven backward, each
through memory, and keeps three tensors as large as x; this keeps x and one number a row.
"""

import torch
from torch import Tensor

from .. import cpu
from ..backend import uses_triton
from ..operators import both_routes
from ..statistics.rounding import new_rows, rounded
from . import norm_triton
from .norm_triton import Norm


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> Tensor:
    """`rms_norm` in plain PyTorch."""
    values = x.float()
    normal = values * torch.rsqrt(values.square().mean(-1, keepdim=True) + eps)
    return (normal * (weight.float() + offset)).to(x.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, offset: float = 0.0, slot: Tensor | None = None) -> Tensor:
    """RMSNorm of the last dimension.

    Args:
        x: fp32, fp16 or bf16 [..., K].
        weight: [K], frozen.
        offset: added to the weight: 0 for LLaMA, 1 for Gemma.
        slot: float64 [2, 9] for the rows of y, and in backward of dx (rounding.py); None for none.

    Returns:
        [..., K] in x's dtype.
    """
    return _rms_norm(x, weight, eps, offset, slot)


def _forward(
    x: Tensor, weight: Tensor, eps: float, offset: float, slot: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """y; rows [1, 9] or [0, 9]; rstd fp32 [M]."""
    if uses_triton(x):
        how = Norm(weight, eps=eps, offset=offset)
        y, rows, _, rstd = norm_triton.norm(x, how, x.dtype, slot is not None)
        return y, rows, rstd
    flat = x.reshape(-1, x.shape[-1]).contiguous()
    if cpu.AVAILABLE and slot is None:
        y, rstd = cpu.norm(flat, weight + offset if offset else weight, eps)
        return y.view(x.shape), new_rows(x, 0), rstd
    values = flat.float()
    rstd = torch.linalg.vector_norm(values, dim=-1).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    acc = (values * rstd[:, None]).mul_(weight.float() + offset)
    (y,), rows = rounded([acc], x.dtype, slot is not None)
    return y.view(x.shape), rows, rstd


def _backward(
    dy: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, offset: float, counted: bool
) -> tuple[Tensor, Tensor]:
    """Rows [1, 9] or [0, 9]; dx."""
    if uses_triton(x):
        return norm_triton.norm_backward(dy, x, Norm(weight, offset=offset), None, rstd, counted)
    dy, flat = (tensor.reshape(-1, x.shape[-1]).contiguous() for tensor in (dy, x))
    if cpu.AVAILABLE and not counted:
        dx = cpu.norm_backward(dy, flat, weight + offset if offset else weight, rstd)
        return new_rows(x, 0), dx.view(x.shape)
    values = flat.float()
    weighted = dy.float() * (weight.float() + offset)
    factor = (weighted * values).sum(-1).div_(x.shape[-1]).mul_(rstd.square())
    acc = weighted.addcmul_(values, factor[:, None], value=-1).mul_(rstd[:, None])
    (dx,), rows = rounded([acc], x.dtype, counted)
    return rows, dx.view(x.shape)


def _fake_forward(x, weight, eps, offset, slot=None):
    rows = new_rows(x, 0 if slot is None else 1)
    return x.new_empty(x.shape), rows, x.new_empty(x.shape[:-1].numel(), dtype=torch.float32)


def _fake_backward(dy, x, weight, rstd, offset, counted):
    return new_rows(x, int(counted)), x.new_empty(x.shape)


_rms_norm = both_routes(
    "rms_norm",
    _forward,
    _backward,
    lambda x, weight, eps, offset, y, rows, rstd: ([x, weight, rstd], (offset,)),
    (_fake_forward, _fake_backward),
)
