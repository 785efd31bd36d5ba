"""Causal attention on the CPU, without a mask: scores live for a block of queries only, and K and V are not repeated.

    P = softmax(scale Q K^T + causal mask),  O = P V
    dV = P^T dO,  dS = scale P (dO V^T - rowsum(dO O)),  dQ = dS K,  dK = dS^T Q

In fp32 whatever the dtype of the tensors, and rounded once. Kept are Q, K, V, O and log sum exp of each row of scores.
"""

from typing import Any

import torch
from torch import Tensor

from .. import cpu
from ..backend import uses_triton
from ..ledger import Ledger, Scratch
from ..ledger import attention as scratch_of_attention
from ..operators import both_routes


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
    return _attend(query, key, value, scale)


def _compute(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """O [B, S, heads, D] and log sum exp [B, heads, S] in fp32."""
    batch, heads, rows, cols = query.shape
    out = query.new_empty(batch, rows, heads, cols)
    lse = query.new_empty(batch, heads, rows, dtype=torch.float32)
    cpu.attention(cpu.Attention(query, key, value, out.transpose(1, 2), lse), scale)
    return out, lse


def _compute_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """dQ, dK and dV in the shapes of Q, K and V, dense as [B, S, heads, D]."""
    grad = grad if grad.stride(-1) == 1 else grad.contiguous()
    dq, dk, dv = (x.transpose(1, 2) for x in _gradients_of(query, key, value))
    tensors = cpu.Attention(query, key, value, out.transpose(1, 2), lse)
    cpu.attention(tensors, scale, (grad.transpose(1, 2), dq, dk, dv))
    return dq, dk, dv


def attention_scratch(query: Tensor, key: Tensor, *_: Any) -> Scratch:
    """Bytes that the operator takes beside what it returns, from its arguments; the same as backward takes, whose first
    argument stands before them.
    """
    ledger = Ledger()
    ledger.within(scratch_of_attention(key.shape[0], key.shape[1], key.shape[2], query.shape[3]))
    return ledger.scratch()


def attention_backward_scratch(grad: Tensor, *arguments: Any) -> Scratch:
    """Of its gradient."""
    copy = grad.numel() * grad.element_size() if grad.stride(-1) != 1 else 0
    return Scratch(copy + attention_scratch(*arguments).inside)


def _gradients_of(*tensors: Tensor) -> list[Tensor]:
    """Memory for their gradients, dense as [B, S, heads, D]."""
    return [torch.empty_like(x.transpose(1, 2), memory_format=torch.contiguous_format) for x in tensors]


def _fake(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    batch, heads, rows, cols = query.shape
    return query.new_empty(batch, rows, heads, cols), query.new_empty(batch, heads, rows, dtype=torch.float32)


def _fake_backward(_grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_kept: Any) -> tuple[Tensor, ...]:
    return tuple(x.transpose(1, 2) for x in _gradients_of(query, key, value))


_attend = both_routes(
    "attention",
    _compute,
    _compute_backward,
    lambda query, key, value, scale, out, lse: ([query, key, value, out, lse], (scale,)),
    (_fake, _fake_backward),
    has_slot=False,
)
