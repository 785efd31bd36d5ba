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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import lora_linear_aten as aten
from . import lora_linear_launch as launch
from .backend import runs_directly, uses_triton
from .nf4 import nf4_decode
from .reduce import N_FIELDS, reduce_partials
from .tensor_stats_aten import round_with_stats_cpu

__all__ = ["NF4Weight", "lora_linear", "site_names", "store"]


@dataclass(frozen=True)
class NF4Weight:
    """A frozen weight as bitsandbytes packs it; the tensors are those of `nf4.nf4_decode`."""

    packed: Tensor
    absmax: Tensor
    code: Tensor
    blocksize: int
    nested_absmax: Tensor | None = None
    nested_code: Tensor | None = None
    offset: Tensor | None = None
    nested_blocksize: int = 256

    def tensors(self) -> list[Tensor]:
        """The three or six tensors, in the order of `nf4_decode`."""
        nested = (self.nested_absmax, self.nested_code, self.offset)
        return [self.packed, self.absmax, self.code, *(t for t in nested if t is not None)]


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
) -> list[Tensor]:
    """Outputs of the projections of a group that share the input `x`.

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
        slot: float64 [2 + 4 g, 9] for the statistics, see the head of this file; None for none.

    Returns:
        One [..., N_i] per projection, in the compute dtype.
    """
    assert 0 <= dropout_p < 1, f"dropout_p={dropout_p} is not in [0, 1)"
    assert seed is not None or dropout_p == 0, "dropout needs a seed"
    assert all(a.dtype == b.dtype == torch.float32 for a, b in zip(lora_A, lora_B, strict=True)), "LoRA is fp32"
    group = len(lora_A)
    x, cast_row = _in_compute_dtype(x, slot is not None)
    flat_weights, formats = _flatten(weights)
    flat_biases = [x.new_empty(0)] * group if biases is None else [x.new_empty(0) if b is None else b for b in biases]
    seed = seed if dropout_p > 0 else None
    if runs_directly(x):
        sizes = len(flat_weights), group
        tensors = (*flat_weights, *flat_biases, *lora_A, *lora_B)
        ys = list(_Directly.apply(sizes, slot, formats, list(scalings), dropout_p, x, seed, *tensors))
    else:
        x_2d, lora = x.reshape(-1, x.shape[-1]), (list(lora_A), list(lora_B))
        ys, _, rows = _forward(x_2d, flat_weights, flat_biases, *lora, seed, slot, formats, list(scalings), dropout_p)
        ys = [y.view(*x.shape[:-1], y.shape[-1]) for y in ys]
        if slot is not None:
            store(slot[: 1 + group], rows)
    if cast_row is not None:
        assert slot is not None
        store(slot[0], cast_row)
    return ys


def _in_compute_dtype(x: Tensor, with_stats: bool) -> tuple[Tensor, Tensor | None]:
    """`x` in autocast's dtype where it is on, and with statistics the row of that rounding."""
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    if dtype != x.dtype and with_stats:
        return _cast(x, dtype)
    return x.to(dtype), None


def _flatten(weights: Sequence[Tensor | NF4Weight]) -> tuple[list[Tensor], list[int]]:
    """Weights as an operator takes them: tensors, and per weight (tensors, blocksize, nested blocksize)."""
    tensors, formats = [], []
    for weight in weights:
        if isinstance(weight, Tensor):
            tensors.append(weight)
            formats += [1, 0, 0]
        else:
            tensors += weight.tensors()
            formats += [len(weight.tensors()), weight.blocksize, weight.nested_blocksize]
    return tensors, formats


def _dense(
    tensors: list[Tensor], formats: list[int], lora_A: list[Tensor], lora_B: list[Tensor], dtype: torch.dtype
) -> Iterator[Tensor]:
    """The weights one after the other; an NF4 weight is decoded when its turn comes, and lives for it."""
    start = 0
    for i, (a, b) in enumerate(zip(lora_A, lora_B, strict=True)):
        n_tensors, blocksize, nested_blocksize = formats[3 * i : 3 * i + 3]
        parts = tensors[start : start + n_tensors]
        start += n_tensors
        if n_tensors == 1:
            yield parts[0]
            continue
        packed, absmax, code = parts[:3]
        nested = parts[3:] if n_tensors == 6 else (None, None, None)
        shape = (b.shape[0], a.shape[1])
        yield nf4_decode(packed, absmax, code, *nested, shape, blocksize, nested_blocksize, dtype)


@torch.library.custom_op("lora_train::cast_with_stats", mutates_args=())
def _cast(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`x` in a 16-bit dtype, and the row of the result, overflow and underflow included."""
    if uses_triton(x):
        out, site = launch.cast(x, dtype)
        return out, reduce_partials(site.partials, site.n)
    return round_with_stats_cpu(x.float(), dtype)


@_cast.register_fake
def _(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=dtype), x.new_empty(N_FIELDS, dtype=torch.float64)


def _cast_context(ctx, inputs, output) -> None:
    ctx.dtype = inputs[0].dtype
    ctx.mark_non_differentiable(output[1])


_cast.register_autograd(lambda ctx, grad, _: (grad.to(ctx.dtype), None), setup_context=_cast_context)


@torch.library.custom_op("lora_train::store", mutates_args=("slot",))
def store(slot: Tensor, rows: Tensor) -> None:
    """Assigns `rows` to `slot`. An operator of its own because one that mutates cannot have a gradient."""
    slot.copy_(rows)


@store.register_fake
def _(slot: Tensor, rows: Tensor) -> None:
    return None


def _compute(
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    lora_A: list[Tensor],
    lora_B: list[Tensor],
    seed: Tensor | None,
    slot: Tensor | None,
    formats: list[int],
    scalings: list[float],
    dropout_p: float,
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Outputs, H [M, sum of ranks] in fp32 for backward, rows [1 + g, 9] or [0, 9]."""
    dense = _dense(weights, formats, lora_A, lora_B, x.dtype)
    forward = launch.forward if uses_triton(x) else aten.forward
    with torch.autocast(x.device.type, enabled=False):
        return forward(x.contiguous(), dense, biases, lora_A, lora_B, seed, scalings, dropout_p, slot is not None)


_forward = torch.library.custom_op("lora_train::lora_linear", _compute, mutates_args=())


@_forward.register_fake
def _(x, weights, biases, lora_A, lora_B, seed, slot, formats, scalings, dropout_p):
    ys = [x.new_empty(x.shape[0], b.shape[0]) for b in lora_B]
    h = x.new_empty(x.shape[0], sum(a.shape[0] for a in lora_A), dtype=torch.float32)
    n_rows = 0 if slot is None else 1 + len(lora_A)
    return ys, h, x.new_empty(n_rows, N_FIELDS, dtype=torch.float64)


def _compute_backward(
    grads: list[Tensor],
    x: Tensor,
    h: Tensor,
    weights: list[Tensor],
    lora_A: list[Tensor],
    lora_B: list[Tensor],
    seed: Tensor | None,
    formats: list[int],
    scalings: list[float],
    dropout_p: float,
    needs_dx: bool,
    with_stats: bool,
) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor]:
    """dX ([0] if not needed), every dA, every dB, rows [1 + 3 g, 9] or [0, 9]."""
    dense = _dense(weights, formats, lora_A, lora_B, grads[0].dtype)
    backward = launch.backward if uses_triton(x) else aten.backward
    with torch.autocast(x.device.type, enabled=False):
        return backward(
            grads, x.contiguous(), h, dense, lora_A, lora_B, seed, scalings, dropout_p, needs_dx, with_stats
        )


_backward = torch.library.custom_op("lora_train::lora_linear_backward", _compute_backward, mutates_args=())


@_backward.register_fake
def _(grads, x, h, weights, lora_A, lora_B, seed, formats, scalings, dropout_p, needs_dx, with_stats):
    dx = torch.empty_like(x) if needs_dx else x.new_empty(0)
    n_rows = 1 + 3 * len(lora_A) if with_stats else 0
    rows = x.new_empty(n_rows, N_FIELDS, dtype=torch.float64)
    return dx, [torch.empty_like(a) for a in lora_A], [torch.empty_like(b) for b in lora_B], rows


def _keep(ctx, x, h, seed, weights, lora_A, lora_B, slot, formats, scalings, dropout_p) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, h, seed, *weights, *lora_A, *lora_B)
    # Not among the saved tensors: those may not be written to before backward reads them.
    ctx.slot = slot
    ctx.n_weights, ctx.group = len(weights), len(lora_A)
    ctx.formats, ctx.scalings, ctx.dropout_p = formats, scalings, dropout_p


def _gradients(ctx, grad_ys, needs_dx: bool, backward) -> tuple[Tensor | None, list[Tensor], list[Tensor], Tensor]:
    """dX, every dA, every dB, rows."""
    x, h, seed, *rest = ctx.saved_tensors
    g, n = ctx.group, ctx.n_weights
    weights, lora_A, lora_B = rest[:n], rest[n : n + g], rest[n + g :]
    grads = [
        x.new_zeros(x.shape[0], b.shape[0]) if grad is None else grad for grad, b in zip(grad_ys, lora_B, strict=True)
    ]
    how = (seed, ctx.formats, ctx.scalings, ctx.dropout_p, needs_dx, ctx.slot is not None)
    dx, dA, dB, rows = backward(grads, x, h, weights, lora_A, lora_B, *how)
    return (dx if needs_dx else None), dA, dB, rows


def _setup_context(ctx, inputs, output) -> None:
    x, weights, biases, lora_A, lora_B, seed, *how = inputs
    _, h, rows = output
    ctx.mark_non_differentiable(h, rows)
    ctx.n_biases = len(biases)
    _keep(ctx, x, h, seed, weights, lora_A, lora_B, *how)


def _differentiate(ctx, grad_ys, _grad_h, _grad_rows):
    dx, dA, dB, rows = _gradients(ctx, grad_ys, ctx.needs_input_grad[0], _backward)
    if ctx.slot is not None:
        store(ctx.slot[1 + ctx.group :], rows)
    return dx, [None] * ctx.n_weights, [None] * ctx.n_biases, dA, dB, None, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_setup_context)


class _Directly(torch.autograd.Function):
    """The same without the dispatcher, whose layers of Python cost a call more than a small product takes; for any
    leading dimensions, because a view that autograd sees costs two more calls.
    """

    @staticmethod
    def forward(ctx, sizes, slot, formats, scalings, dropout_p, x, seed, *tensors):
        n, g = sizes
        weights, biases = list(tensors[:n]), list(tensors[n : n + g])
        lora_A, lora_B = list(tensors[n + g : n + 2 * g]), list(tensors[n + 2 * g :])
        how = (slot, formats, scalings, dropout_p)
        ctx.leading, x = x.shape[:-1], x.reshape(-1, x.shape[-1])
        ys, h, rows = _compute(x, weights, biases, lora_A, lora_B, seed, *how)
        if slot is not None:
            slot[: 1 + g].copy_(rows)
        _keep(ctx, x, h, seed, weights, lora_A, lora_B, *how)
        return tuple([y.view(*ctx.leading, y.shape[-1]) for y in ys])

    @staticmethod
    def backward(ctx, *grad_ys):  # type: ignore[reportIncompatibleMethodOverride]
        with torch.no_grad():
            grad_ys = [None if grad is None else grad.reshape(-1, grad.shape[-1]) for grad in grad_ys]
            dx, dA, dB, rows = _gradients(ctx, grad_ys, ctx.needs_input_grad[5], _compute_backward)
            dx = None if dx is None else dx.view(*ctx.leading, dx.shape[-1])
        if ctx.slot is not None:
            ctx.slot[1 + ctx.group :].copy_(rows)
        return None, None, None, None, None, dx, None, *[None] * (ctx.n_weights + ctx.group), *dA, *dB
