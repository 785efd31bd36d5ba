"""LayerNorm with a frozen weight and bias, as GPT-NeoX has it: one read and one write of memory forward, two and one
backward.

    n  = (x - mean(x)) rstd,  rstd = 1 / sqrt(mean((x - mean(x))^2) + eps)     x [..., K], w, b [K]
    y  = n w + b
    dx = rstd (w dy - n mean(w dy n) - mean(w dy))

Everything in fp32, rounded once: y to any dtype, dx to x's. Under CUDA's autocast PyTorch casts x, w and b to fp32
first and keeps the fp32 x; this reads them as they are and keeps x and two numbers a row. On the CPU it is ATen's.
"""

import torch
from torch import Tensor

from ..backend import uses_triton
from ..operators import both_routes
from ..statistics.rounding import new_rows, rounded
from . import norm_triton
from .norm_triton import Norm


def layer_norm_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, dtype: torch.dtype | None = None
) -> Tensor:
    """`layer_norm` in plain PyTorch."""
    values = x.float()
    values = values - values.mean(-1, keepdim=True)
    normal = values * torch.rsqrt(values.square().mean(-1, keepdim=True) + eps)
    y = normal * weight.float()
    return (y if bias is None else y + bias.float()).to(dtype or x.dtype)


def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    *,
    dtype: torch.dtype | None = None,
    slot: Tensor | None = None,
) -> Tensor:
    """LayerNorm of the last dimension.

    Args:
        x: fp32, fp16 or bf16 [..., K].
        weight: [K], frozen.
        bias: [K], frozen, or None.
        dtype: of the result, if not x's: fp32 where autocast would have it so.
        slot: float64 [2, 9] for the rows of y, and in backward of dx (rounding.py); None for none.

    Returns:
        [..., K].
    """
    return _layer_norm(x, weight, bias, eps, dtype or x.dtype, slot)


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, dtype: torch.dtype, slot: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y; rows [1, 9] or [0, 9]; mean and rstd, fp32 [M]."""
    if uses_triton(x):
        y, rows, mean, rstd = norm_triton.norm(x, Norm(weight, bias, eps, centred=True), dtype, slot is not None)
        assert mean is not None
        return y, rows, mean, rstd
    values, bias = x.float(), None if bias is None else bias.float()
    acc, mean, rstd = torch.native_layer_norm(values, values.shape[-1:], weight.float(), bias, eps)
    (y,), rows = rounded([acc], dtype, slot is not None)
    return y, rows, mean.view(-1), rstd.view(-1)


def _backward(
    dy: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, counted: bool
) -> tuple[Tensor, Tensor]:
    """Rows [1, 9] or [0, 9]; dx."""
    if uses_triton(x):
        return norm_triton.norm_backward(dy, x, Norm(weight), mean, rstd, counted)
    each = (*x.shape[:-1], 1)
    acc = torch.ops.aten.native_layer_norm_backward(
        dy.float(), x.float(), x.shape[-1:], mean.view(each), rstd.view(each), weight.float(), None,
        [True, False, False],
    )[0]  # fmt: skip
    (dx,), rows = rounded([acc], x.dtype, counted)
    return rows, dx


def _fake_forward(x, weight, bias, eps, dtype, slot=None):
    mean, rstd = (x.new_empty(x.shape[:-1].numel(), dtype=torch.float32) for _ in range(2))
    return x.new_empty(x.shape, dtype=dtype), new_rows(x, 0 if slot is None else 1), mean, rstd


def _fake_backward(dy, x, weight, mean, rstd, counted):
    return new_rows(x, int(counted)), x.new_empty(x.shape)


_layer_norm = both_routes(
    "layer_norm",
    _forward,
    _backward,
    lambda x, weight, bias, eps, dtype, y, rows, mean, rstd: ([x, weight, mean, rstd], ()),
    (_fake_forward, _fake_backward),
)
