"""Rotary position embedding in halves, as LLaMA and GPT-NeoX have it: one read and one write of memory.

    y_i = x_i cos_i - x_j sin_i,   y_j = x_j cos_j + x_i sin_j        j = i + R / 2

for the first R values of every head; the others stay. The gradient is the transposed rotation of dy. Everything in
fp32, rounded once; nothing but the angles is kept.
"""

import torch
from torch import Tensor

from . import cpu
from .backend import runs_directly


def rotary_reference(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`rotary` in plain PyTorch."""
    turned, rest = x[..., : cos.shape[-1]].float(), x[..., cos.shape[-1] :]
    low, high = turned.chunk(2, dim=-1)
    turned = turned * cos.unsqueeze(1).float() + torch.cat((-high, low), dim=-1) * sin.unsqueeze(1).float()
    return torch.cat((turned.to(x.dtype), rest), dim=-1)


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the heads of queries or keys.

    Args:
        x: fp32, fp16 or bf16 [B, heads, S, D] on the CPU.
        cos, sin: [B or 1, S, R], R even and at most D.

    Returns:
        [B, heads, S, D] in x's dtype, dense as [B, S, heads, D].
    """
    cos, sin = cos.float().contiguous(), sin.float().contiguous()
    return _Directly.apply(x, cos, sin) if runs_directly(x) else _rotate(x, cos, sin, False)


def _compute(x: Tensor, cos: Tensor, sin: Tensor, backward: bool) -> Tensor:
    """The rotation, or the transposed one."""
    if x.stride(-1) != 1:
        x = x.contiguous()
    if cpu.AVAILABLE:
        return cpu.rotate(x, cos, sin, backward)
    y = torch.empty(x.shape[0], x.shape[2], x.shape[1], x.shape[3], dtype=x.dtype).transpose(1, 2)
    width = cos.shape[-1]
    low, high = x[..., : width // 2].float(), x[..., width // 2 : width].float()
    cos_low, cos_high = cos.unsqueeze(1).chunk(2, dim=-1)
    sin_low, sin_high = sin.unsqueeze(1).chunk(2, dim=-1)
    from_high, from_low = (sin_high, -sin_low) if backward else (-sin_low, sin_high)
    y[..., : width // 2] = (low * cos_low).addcmul_(high, from_high)
    y[..., width // 2 : width] = (high * cos_high).addcmul_(low, from_low)
    y[..., width:] = x[..., width:]
    return y


_rotate = torch.library.custom_op("lora_train::rotary", _compute, mutates_args=())


@_rotate.register_fake
def _(x: Tensor, cos: Tensor, sin: Tensor, backward: bool) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[2], x.shape[1], x.shape[3]).transpose(1, 2)


def _keep(ctx, inputs, output) -> None:
    _, cos, sin, ctx.backward = inputs
    ctx.save_for_backward(cos, sin)


def _differentiate(ctx, dy: Tensor):
    return _rotate(dy, *ctx.saved_tensors, not ctx.backward), None, None, None


_rotate.register_autograd(_differentiate, setup_context=_keep)


class _Directly(torch.autograd.Function):
    """The same without the dispatcher."""

    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.save_for_backward(cos, sin)
        return _compute(x, cos, sin, False)

    @staticmethod
    def backward(ctx, dy):  # type: ignore[reportIncompatibleMethodOverride]
        cos, sin = ctx.saved_tensors
        return _compute(dy, cos, sin, True), None, None
