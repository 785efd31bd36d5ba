"""Causal attention on the CPU, without a mask: scores live for a block of queries only, and K and V are not repeated.

    P = softmax(scale Q K^T + causal mask),  O = P V
    dV = P^T dO,  dS = scale P (dO V^T - rowsum(dO O)),  dQ = dS K,  dK = dS^T Q

In fp32 whatever the dtype of the tensors, and rounded once. Kept are Q, K, V, O and log sum exp of each row of scores.
"""

import torch
from torch import Tensor

from .. import cpu
from ..backend import runs_directly, uses_triton


def takes(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether `attention` can compute it, and on every thread: a share is a row of the batch and a head of K and V."""
    return (
        cpu.AVAILABLE
        and query.device.type == "cpu"
        and not uses_triton(query)
        and query.dtype in cpu.DTYPES
        and query.dtype == key.dtype == value.dtype
        and key.shape == value.shape
        and query.shape[2] == key.shape[2]
        and query.shape[3] == key.shape[3]
        and query.shape[3] % 16 == 0
        and query.shape[1] % key.shape[1] == 0
        and key.shape[0] * key.shape[1] >= torch.get_num_threads()
    )


def attention_reference(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """`attention` in plain PyTorch."""
    repeats = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
    scores = query @ key.transpose(2, 3) * scale
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return (scores.masked_fill(future, -torch.inf).softmax(-1) @ value).transpose(1, 2)


def attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Every position's attention to itself and those before it, in its row of the batch.

    Args:
        query: [B, heads, S, D] that `takes` takes, in fp32, fp16 or bf16.
        key, value: [B, kv_heads, S, D]; every heads / kv_heads heads of the query read one of them.

    Returns:
        [B, S, heads, D] in the same dtype, contiguous.
    """
    query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
    if runs_directly(query):
        return _Directly.apply(query, key, value, scale)
    return _attend(query, key, value, scale)[0]


def _compute(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """O [B, S, heads, D] and log sum exp [B, heads, S] in fp32."""
    batch, heads, rows, cols = query.shape
    out = query.new_empty(batch, rows, heads, cols)
    lse = query.new_empty(batch, heads, rows, dtype=torch.float32)
    cpu.attention(cpu.Attention(query, key, value, out.transpose(1, 2), lse), scale)
    return out, lse


_attend = torch.library.custom_op("lora_train::attention", _compute, mutates_args=())


@_attend.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    batch, heads, rows, cols = query.shape
    return query.new_empty(batch, rows, heads, cols), query.new_empty(batch, heads, rows, dtype=torch.float32)


def _compute_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """dQ, dK and dV in the shapes of Q, K and V, dense as [B, S, heads, D]."""
    grad = grad if grad.stride(-1) == 1 else grad.contiguous()
    grads = [torch.empty_like(x.transpose(1, 2), memory_format=torch.contiguous_format) for x in (query, key, value)]
    dq, dk, dv = (x.transpose(1, 2) for x in grads)
    tensors = cpu.Attention(query, key, value, out.transpose(1, 2), lse)
    cpu.attention(tensors, scale, (grad.transpose(1, 2), dq, dk, dv))
    return dq, dk, dv


_attend_backward = torch.library.custom_op("lora_train::attention_backward", _compute_backward, mutates_args=())


@_attend_backward.register_fake
def _(grad, query, key, value, out, lse, scale):
    grads = [torch.empty_like(x.transpose(1, 2), memory_format=torch.contiguous_format) for x in (query, key, value)]
    return tuple(x.transpose(1, 2) for x in grads)


def _setup_context(ctx, inputs, output) -> None:
    query, key, value, ctx.scale = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(query, key, value, *output)


def _differentiate(ctx, grad: Tensor, _grad_lse: Tensor):
    return *_attend_backward(grad, *ctx.saved_tensors, ctx.scale), None


_attend.register_autograd(_differentiate, setup_context=_setup_context)


class _Directly(torch.autograd.Function):
    """The same without the dispatcher."""

    @staticmethod
    def forward(ctx, query, key, value, scale):
        out, lse = _compute(query, key, value, scale)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx, grad):  # type: ignore[reportIncompatibleMethodOverride]
        query, key, value, out, lse = ctx.saved_tensors
        return *_compute_backward(grad, query, key, value, out, lse, ctx.scale), None
