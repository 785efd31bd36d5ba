"""Rotary position embedding in halves, as LLaMA and GPT-NeoX have it: one read and one write of memory.

    y_i = x_i cos_i - x_j sin_i,   y_j = x_j cos_j + x_i sin_j        j = i + R / 2

for the first R values of every head; the others stay. The gradient is the transposed rotation of dy. Everything in
fp32, rounded once; nothing but the angles is kept.
"""

import torch
from torch import Tensor

from .. import cpu
from ..backend import uses_triton
from ..operators import both_routes
from ..statistics.rounding import new_rows, rounded
from .rotary_triton import rotate


def rotary_reference(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`rotary` in plain PyTorch."""
    turned, rest = x[..., : cos.shape[-1]].float(), x[..., cos.shape[-1] :]
    low, high = turned.chunk(2, dim=-1)
    turned = turned * cos.unsqueeze(1).float() + torch.cat((-high, low), dim=-1) * sin.unsqueeze(1).float()
    return torch.cat((turned.to(x.dtype), rest), dim=-1)


def rotary(x: Tensor, cos: Tensor, sin: Tensor, *, slot: Tensor | None = None) -> Tensor:
    """Rotates the heads of queries or keys.

    Args:
        x: fp32, fp16 or bf16 [B, heads, S, D].
        cos, sin: [B or 1, S, R], R even and at most D.
        slot: float64 [2, 9] for the rows of y, and in backward of dx (rounding.py); None for none.

    Returns:
        [B, heads, S, D] in x's dtype, dense as [B, S, heads, D].
    """
    if not uses_triton(x):  # whose kernel reads any dtype
        cos, sin = cos.float(), sin.float()
    return _rotary(x, cos.contiguous(), sin.contiguous(), slot)


def _turn(x: Tensor, cos: Tensor, sin: Tensor, back: bool, counted: bool) -> tuple[Tensor, Tensor]:
    """The rotation, or the transposed one; rows [1, 9] or [0, 9]."""
    if x.stride(-1) != 1:
        x = x.contiguous()
    if uses_triton(x):
        return rotate(x, cos, sin, back, counted)
    if cpu.AVAILABLE and not counted:
        return cpu.rotate(x, cos, sin, back), new_rows(x, 0)
    y = torch.empty(x.shape[0], x.shape[2], x.shape[1], x.shape[3], dtype=torch.float32).transpose(1, 2)
    width = cos.shape[-1]
    low, high = x[..., : width // 2].float(), x[..., width // 2 : width].float()
    cos_low, cos_high = cos.unsqueeze(1).chunk(2, dim=-1)
    sin_low, sin_high = sin.unsqueeze(1).chunk(2, dim=-1)
    from_high, from_low = (sin_high, -sin_low) if back else (-sin_low, sin_high)
    y[..., : width // 2] = (low * cos_low).addcmul_(high, from_high)
    y[..., width // 2 : width] = (high * cos_high).addcmul_(low, from_low)
    y[..., width:] = x[..., width:]
    (turned,), rows = rounded([y.transpose(1, 2)], x.dtype, counted)
    return turned.transpose(1, 2), rows


def _forward(x: Tensor, cos: Tensor, sin: Tensor, slot: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return _turn(x, cos, sin, False, slot is not None)


def _backward(dy: Tensor, cos: Tensor, sin: Tensor, counted: bool) -> tuple[Tensor, Tensor]:
    dx, rows = _turn(dy, cos, sin, True, counted)
    return rows, dx


def _fake_turned(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[2], x.shape[1], x.shape[3]).transpose(1, 2)


def _fake_forward(x, cos, sin, slot=None):
    return _fake_turned(x), new_rows(x, 0 if slot is None else 1)


def _fake_backward(dy, cos, sin, counted):
    return new_rows(dy, int(counted)), _fake_turned(dy)


_rotary = both_routes(
    "rotary", _forward, _backward, lambda x, cos, sin, y, rows: ([cos, sin], ()), (_fake_forward, _fake_backward)
)
