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
[N_i, r_i] are fp32. Where W_i is fp32 and X is 16-bit, Triton rounds W_i to X's dtype as autocast does; the CPU
computes in fp32 anyway and does not. One dropout mask serves the group; it is a function of a seed tensor, so
recomputation repeats it, and masks differ between the CPU and Triton.

Statistics: rows as in reduce.py, in one slot, a float64 [2 + 4 g, 9] view of the caller's buffer for a group of g:

    row          site
    0            in            non-finite counts; everything if autocast rounded X here
    1 + i        out
    1 + g + i    grad_out      of the dtype it arrived in, overflow and underflow null
    1 + 2g       grad_in       of the whole group; all null if X needs no gradient
    2 + 2g + i   lora_A.grad   of this micro-batch
    2 + 3g + i   lora_B.grad   of this micro-batch

Rows are assigned, never added, so recomputation under checkpointing writes the same values again. n_overflow of
out, grad_in and the LoRA gradients is every infinity if what went in is finite. If it is not, n_overflow is exact on
the CPU for 16-bit tensors, else null. n_underflow is exact on the CPU for 16-bit tensors, null elsewhere: cuBLAS
has rounded the base product before anybody can look. Without a slot nothing of it runs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import lora_linear_aten as aten
from .backend import uses_triton
from .reduce import N_FIELDS

__all__ = ["lora_linear", "lora_linear_reference", "site_names", "store"]

MAX_RANK = 256


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


@torch.library.custom_op("lora_vitals::store", mutates_args=("slot",))
def store(slot: Tensor, rows: Tensor) -> None:
    """Assigns `rows` to `slot`. An operator of its own because one that mutates cannot have a gradient."""
    slot.copy_(rows)


@store.register_fake
def _(slot: Tensor, rows: Tensor) -> None:
    return None


@torch.library.custom_op("lora_vitals::lora_linear", mutates_args=())
def _forward(
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    lora_A: list[Tensor],
    lora_B: list[Tensor],
    seed: Tensor | None,
    slot: Tensor | None,
    scalings: list[float],
    dropout_p: float,
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Outputs, tensors for backward ([H] or [H, dropout(X)]), rows [1 + g, 9] or [0, 9]."""
    with torch.autocast(x.device.type, enabled=False):
        return aten.forward(
            x, weights, biases, lora_A, lora_B, seed, scalings, dropout_p, slot is not None
        )


def _saves_x_hat(x: Tensor, dropout_p: float) -> bool:
    """Whether dropout(X) is kept for backward in X's place; else it is recomputed from the seed."""
    return dropout_p > 0 and x.dtype == torch.float32 and not uses_triton(x)


@_forward.register_fake
def _(x, weights, biases, lora_A, lora_B, seed, slot, scalings, dropout_p):
    ys = [x.new_empty(x.shape[0], b.shape[0]) for b in lora_B]
    saved = [x.new_empty(x.shape[0], sum(a.shape[0] for a in lora_A), dtype=torch.float32)]
    if _saves_x_hat(x, dropout_p):
        saved.append(torch.empty_like(x))
    n_rows = 0 if slot is None else 1 + len(lora_A)
    return ys, saved, x.new_empty(n_rows, N_FIELDS, dtype=torch.float64)


@torch.library.custom_op("lora_vitals::lora_linear_backward", mutates_args=())
def _backward(
    grads: list[Tensor],
    x: Tensor,
    h: Tensor,
    weights: list[Tensor],
    lora_A: list[Tensor],
    lora_B: list[Tensor],
    seed: Tensor | None,
    scalings: list[float],
    dropout_p: float,
    needs_dx: bool,
    with_stats: bool,
) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor]:
    """dX ([0] if not needed), every dA, every dB, rows [1 + 3 g, 9] or [0, 9]."""
    with torch.autocast(x.device.type, enabled=False):
        return aten.backward(
            grads, x, h, weights, lora_A, lora_B, seed, scalings, dropout_p, needs_dx, with_stats
        )


@_backward.register_fake
def _(grads, x, h, weights, lora_A, lora_B, seed, scalings, dropout_p, needs_dx, with_stats):
    dx = torch.empty_like(x) if needs_dx else x.new_empty(0)
    n_rows = 1 + 3 * len(lora_A) if with_stats else 0
    rows = x.new_empty(n_rows, N_FIELDS, dtype=torch.float64)
    return dx, [torch.empty_like(a) for a in lora_A], [torch.empty_like(b) for b in lora_B], rows


def _setup_context(ctx, inputs, output) -> None:
    x, weights, biases, lora_A, lora_B, seed, slot, scalings, dropout_p = inputs
    _, saved, rows = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*saved, rows)
    h, kept_x = saved[0], saved[1] if len(saved) > 1 else x
    ctx.save_for_backward(kept_x, h, seed, *weights, *lora_A, *lora_B)
    # Not among the saved tensors: those may not be written to before backward reads them.
    ctx.slot = slot
    ctx.n_weights, ctx.n_biases, ctx.group = len(weights), len(biases), len(lora_A)
    ctx.scalings, ctx.dropout_p = scalings, dropout_p


def _differentiate(ctx, grad_ys, _grad_saved, _grad_rows):
    x, h, seed, *rest = ctx.saved_tensors
    g, n = ctx.group, ctx.n_weights
    weights, lora_A, lora_B = rest[:n], rest[n : n + g], rest[n + g :]
    grads = [
        x.new_zeros(x.shape[0], b.shape[0]) if grad is None else grad
        for grad, b in zip(grad_ys, lora_B, strict=True)
    ]
    needs_dx, with_stats = ctx.needs_input_grad[0], ctx.slot is not None
    dx, dA, dB, rows = _backward(
        grads, x, h, weights, lora_A, lora_B, seed, ctx.scalings, ctx.dropout_p, needs_dx, with_stats
    )
    if with_stats:
        store(ctx.slot[1 + g :], rows)
    no_weights, no_biases = [None] * n, [None] * ctx.n_biases
    return (dx if needs_dx else None), no_weights, no_biases, dA, dB, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_setup_context)
