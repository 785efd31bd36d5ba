"""Fused LoRA linear with statistics, for one projection or a group that reads the same input (q, k, v).

Forward, for the projections i of a group, M tokens, K in, N_i out, rank r_i:

    H_i  = dropout(X) A_i^T                            [M, r_i]  fp32
    Y_i  = X W_i^T + bias_i + s_i H_i B_i^T            [M, N_i]  X's dtype

and backward, given dY_i:

    G_i  = s_i dY_i B_i                                [M, r_i]  fp32
    dB_i = s_i dY_i^T H_i                              [N_i, r_i]  fp32
    dA_i = G_i^T dropout(X)                            [r_i, K]  fp32
    dX   = sum_i dY_i W_i + dropout'(sum_i G_i A_i)    [M, K]  X's dtype

W_i [N_i, K] is frozen: fp32, fp16, bf16, or packed NF4, which is decoded once per use. A_i [r_i, K] and B_i
[N_i, r_i] are fp32. Where W_i is fp32 and X is 16-bit, Triton rounds W_i to X's dtype as autocast does; the
CPU computes in fp32 anyway and does not. One dropout mask serves the group; it is a function of a seed
tensor, so recomputation repeats it, and masks differ between the CPU and Triton.

Statistics: rows as in reduce.py, in one slot: for a group of g a float64 [2 + 4 g, 9] view of the caller's
buffer.

    row          site
    0            in            non-finite counts; everything if autocast rounded X here
    1 + i        out
    1 + g + i    grad_out      of the dtype it arrived in, overflow and underflow null
    1 + 2g       grad_in       of the whole group; all null if X needs no gradient
    2 + 2g + i   lora_A.grad   of this micro-batch
    2 + 3g + i   lora_B.grad   of this micro-batch

Rows are assigned, never added, so recomputation under checkpointing writes the same values again. n_overflow
of out, grad_in and the LoRA gradients is every infinity if what went in is finite. If it is not, n_overflow
is exact on the CPU for 16-bit tensors, else null. n_underflow is exact on the CPU for 16-bit tensors, null
elsewhere: cuBLAS has rounded the base product before anybody can look. Without a slot nothing of it runs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..backend import runs_directly
from ..frozen.nf4 import NF4Weight
from ..operators import store
from ..statistics.pending_rows import PendingRows
from .group import NO_DROPOUT, Dropout, Examples, Group
from .ops import Call, cast_with_stats, directly, lora_linear_op, operands

__all__ = ["Examples", "NF4Weight", "lora_linear", "site_names"]


def site_names(group: int) -> list[tuple[str, int | None]]:
    """Tensor name and projection (None: the group's) of each row of a slot, in order."""
    each = range(group)
    return [
        ("in", None),
        *(("out", i) for i in each),
        *(("grad_out", i) for i in each),
        ("grad_in", None),
        *(("lora_A.grad", i) for i in each),
        *(("lora_B.grad", i) for i in each),
    ]


def lora_linear(
    x: Tensor,
    weights: Sequence[Tensor | NF4Weight],
    lora_A: Sequence[Tensor],
    lora_B: Sequence[Tensor],
    scalings: Sequence[float],
    *,
    biases: Sequence[Tensor | None] | None = None,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    slot: Tensor | None = None,
    pending: PendingRows | None = None,
    examples: Examples | None = None,
) -> list[Tensor]:
    """Outputs of the projections of a group that share the input `x`.

    Its arguments are more than six because they are what a caller who has tensors has: all but five by name.

    Under autocast `x` is rounded to autocast's dtype here, and with a slot what that did is row 0; everything
    after it computes in that dtype.

    Args:
        x: [..., K] in fp32, fp16 or bf16.
        weights: one [N_i, K] or NF4 weight per projection, frozen.
        lora_A: fp32 [r_i, K], any rank; tested from 1 to 256.
        lora_B: fp32 [N_i, r_i].
        scalings: lora_alpha / r of each projection.
        biases: [N_i] or None per projection, frozen.
        dropout_p: probability that an element of the LoRA branch's input is dropped, in [0, 1).
        seed: int64 tensor of one element, on the device of `x`; needed if dropout_p > 0. Must not change
            before backward.
        slot: float64 [2 + 4 g, 9], contiguous, for the statistics, see the head of this file; None for none.
        pending: where Triton serves, rows are written to `slot` when this is flushed, one launch for those of many
            calls. Without it, and on the CPU, they are there when forward and backward are.
        examples: which of the M tokens are whose, and where the squares of each one's dA_i and dB_i go (group.py).

    Returns:
        One [..., N_i] per projection, in the compute dtype.
    """
    assert 0 <= dropout_p < 1, f"dropout_p={dropout_p} is not in [0, 1)"
    assert seed is not None or dropout_p == 0, "dropout needs a seed"
    assert all(a.dtype == b.dtype == torch.float32 for a, b in zip(lora_A, lora_B, strict=True)), "LoRA is fp32"
    flat_biases = [None] * len(lora_A) if biases is None else list(biases)
    dropout = Dropout(seed, dropout_p) if dropout_p > 0 else NO_DROPOUT
    group = Group(list(weights), flat_biases, list(lora_A), list(lora_B), list(scalings), dropout, examples)
    dtype = _compute_dtype(x)
    if runs_directly(x):
        return list(directly(Call(group, dtype, slot, pending), x, *lora_A, *lora_B))
    cast_row = None
    if dtype != x.dtype and slot is not None:
        x, cast_row = cast_with_stats(x, dtype)
    x = x.to(dtype)
    *tensors, formats, factors, p = operands(group)
    starts, squares = ([0], None) if examples is None else (list(examples.starts), examples.squares)
    ys, _, rows = lora_linear_op(x.reshape(-1, x.shape[-1]), *tensors, slot, squares, formats, factors, p, starts)
    if slot is not None:
        store(slot[: 1 + len(lora_A)], rows)
        if cast_row is not None:
            store(slot[0], cast_row)
    return [y.view(*x.shape[:-1], y.shape[-1]) for y in ys]


def _compute_dtype(x: Tensor) -> torch.dtype:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
