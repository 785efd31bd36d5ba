"""The fused LoRA linear as operators that torch knows, and directly: formulas, shapes and rows are in __init__.py.

The operators are for whoever has to see them: torch.compile, fake tensors, a dispatch mode. Everybody else takes
`Directly`.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..backend import has_tensor_cores, is_gpu, uses_triton
from ..frozen.nf4 import decode
from ..statistics.pending_rows import Partials, PendingRows, Rows
from ..statistics.reduce import N_FIELDS, reduce_partials
from ..statistics.tensor_stats_aten import round_with_stats_cpu
from . import aten, launch

_NOTHING = nullcontext()


def _cast_now(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`x` in a 16-bit dtype, and the row of the result, overflow and underflow included."""
    if uses_triton(x):
        out, site = launch.cast(x, dtype)
        return out, reduce_partials(site.buffer, x.numel())
    return round_with_stats_cpu(x.float(), dtype)


cast_with_stats = torch.library.custom_op("lora_train::cast_with_stats", _cast_now, mutates_args=())


@cast_with_stats.register_fake
def _(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=dtype), x.new_empty(N_FIELDS, dtype=torch.float64)


def _cast_context(ctx, inputs, output) -> None:
    ctx.dtype = inputs[0].dtype
    ctx.mark_non_differentiable(output[1])


cast_with_stats.register_autograd(lambda ctx, grad, _: (grad.to(ctx.dtype), None), setup_context=_cast_context)


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
        nested, code_2, offset = parts[3:] if n_tensors == 6 else (None, None, None)
        shape = (b.shape[0], a.shape[1])
        yield decode(packed, absmax, code, nested, code_2, offset, shape, blocksize, nested_blocksize, dtype)


@torch.library.custom_op("lora_train::store", mutates_args=("slot",))
def store(slot: Tensor, rows: Tensor) -> None:
    """Assigns `rows` to `slot`. An operator of its own because one that mutates cannot have a gradient."""
    slot.copy_(rows)


@store.register_fake
def _(slot: Tensor, rows: Tensor) -> None:
    return None


def _run(
    x: Tensor, weights: list[Tensor], biases: Sequence[Tensor | None], lora_A: list[Tensor], lora_B: list[Tensor],
    seed: Tensor | None, formats: list[int], scalings: list[float], dropout_p: float, rows: Rows | None,
) -> tuple[list[Tensor], Tensor]:  # fmt: skip
    """Outputs, and H [M, sum of ranks] in fp32 for backward; statistics go to `rows` [1 + g, 9]."""
    dense = _dense(weights, formats, lora_A, lora_B, x.dtype)
    how = x.contiguous(), dense, biases, lora_A, lora_B, seed, scalings, dropout_p
    with _without_autocast(x):
        if uses_triton(x):
            return launch.forward(*how, rows)
        ys, h, found = aten.forward(*how, rows is not None)
    if rows is not None:
        rows.assign(found)
    return ys, h


def _run_backward(
    grads: list[Tensor], x: Tensor, h: Tensor, weights: list[Tensor], lora_A: list[Tensor], lora_B: list[Tensor],
    seed: Tensor | None, formats: list[int], scalings: list[float], dropout_p: float, needs_dx: bool,
    rows: Rows | None,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:  # fmt: skip
    """dX ([0] if not needed), every dA, every dB; statistics go to `rows` [1 + 3 g, 9]."""
    dense = _dense(weights, formats, lora_A, lora_B, grads[0].dtype)
    how = grads, x.contiguous(), h, dense, lora_A, lora_B, seed, scalings, dropout_p, needs_dx
    with _without_autocast(x):
        if uses_triton(x):
            return launch.backward(*how, rows)
        dx, dA, dB, found = aten.backward(*how, rows is not None)
    if rows is not None:
        rows.assign(found)
    return dx, dA, dB


def _without_autocast(x: Tensor) -> AbstractContextManager:
    """No autocast where products in fp32 are meant. On tensor cores there are none but Triton's, and it costs 10 us."""
    device = x.device
    casts = torch.is_autocast_enabled(device.type) and not (is_gpu(device) and has_tensor_cores(device))
    return torch.autocast(device.type, enabled=False) if casts else _NOTHING


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
    found = x.new_empty(0 if slot is None else 1 + len(lora_A), N_FIELDS, dtype=torch.float64)
    rows = None if slot is None else Rows(found)
    ys, h = _run(x, weights, biases, lora_A, lora_B, seed, formats, scalings, dropout_p, rows)
    if rows is not None:
        rows.end()
    return ys, h, found


lora_linear_op = torch.library.custom_op("lora_train::lora_linear", _compute, mutates_args=())


@lora_linear_op.register_fake
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
    found = x.new_empty(1 + 3 * len(lora_A) if with_stats else 0, N_FIELDS, dtype=torch.float64)
    how = seed, formats, scalings, dropout_p, needs_dx
    rows = Rows(found) if with_stats else None
    dx, dA, dB = _run_backward(grads, x, h, weights, lora_A, lora_B, *how, rows)
    if rows is not None:
        rows.end()
    return dx, dA, dB, found


_backward = torch.library.custom_op("lora_train::lora_linear_backward", _compute_backward, mutates_args=())


@_backward.register_fake
def _(grads, x, h, weights, lora_A, lora_B, seed, formats, scalings, dropout_p, needs_dx, with_stats):
    dx = torch.empty_like(x) if needs_dx else x.new_empty(0)
    n_rows = 1 + 3 * len(lora_A) if with_stats else 0
    rows = x.new_empty(n_rows, N_FIELDS, dtype=torch.float64)
    return dx, [torch.empty_like(a) for a in lora_A], [torch.empty_like(b) for b in lora_B], rows


def _or_zeros(grads, x: Tensor, lora_B: Sequence[Tensor]) -> list[Tensor]:
    """The gradient of every output; zeros where it took no part."""
    return [
        x.new_zeros(x.shape[0], b.shape[0]) if grad is None else grad for grad, b in zip(grads, lora_B, strict=True)
    ]


def _setup_context(ctx, inputs, output) -> None:
    x, weights, biases, lora_A, lora_B, seed, *ctx.how = inputs
    _, h, rows = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(h, rows)
    ctx.save_for_backward(x, h, seed, *weights, *lora_A, *lora_B)
    ctx.counts = len(weights), len(biases), len(lora_A)


def _differentiate(ctx, grad_ys, _grad_h, _grad_rows):
    # the slot is not among the saved tensors: those may not be written to before backward reads them
    slot, *how = ctx.how
    n, n_biases, g = ctx.counts
    x, h, seed, *rest = ctx.saved_tensors
    weights, lora_A, lora_B = rest[:n], rest[n : n + g], rest[n + g :]
    needs_dx = ctx.needs_input_grad[0]
    grads = _or_zeros(grad_ys, x, lora_B)
    dx, dA, dB, rows = _backward(grads, x, h, weights, lora_A, lora_B, seed, *how, needs_dx, slot is not None)
    if slot is not None:
        store(slot[1 + g :], rows)
    return dx if needs_dx else None, [None] * n, [None] * n_biases, dA, dB, None, None, None, None, None


lora_linear_op.register_autograd(_differentiate, setup_context=_setup_context)


class Call(NamedTuple):
    """What a call of `Directly` takes beside X, A and B: nothing of it has a gradient."""

    weights: list[Tensor]
    biases: Sequence[Tensor | None]
    seed: Tensor | None
    formats: list[int]
    scalings: list[float]
    dropout_p: float
    dtype: torch.dtype
    slot: Tensor | None
    pending: PendingRows | None


class Directly(torch.autograd.Function):
    """The same without the dispatcher, whose layers of Python cost a call more than a small product takes; for any
    leading dimensions, because a view that autograd sees costs two more calls. Autocast's rounding is part of it.

    autograd is handed as few arguments as there can be: it looks at each.
    """

    @staticmethod
    def forward(ctx, call: Call, x, *lora):
        g = len(lora) // 2
        lora_A, lora_B = list(lora[:g]), list(lora[g:])
        weights, biases, seed, formats, scalings, dropout_p, dtype, slot, pending = call
        ctx.call, ctx.leading, ctx.dtype = call, x.shape[:-1], x.dtype
        x = x.reshape(-1, x.shape[-1])
        rows = None if slot is None else Rows(slot, pending, 0, 1 + g)
        found = None
        if dtype != x.dtype:
            if rows is None:
                x = x.to(dtype)
            else:
                x, found = launch.cast(x, dtype) if uses_triton(x) else round_with_stats_cpu(x.float(), dtype)
        ys, h = _run(x, weights, biases, lora_A, lora_B, seed, formats, scalings, dropout_p, rows)
        if rows is not None:
            if isinstance(found, Partials):  # row 0 is that of autocast's rounding, where there was one
                rows.pending.add(rows, 0, found, x.numel())
            elif found is not None:
                rows.slot[0].copy_(found)
            rows.end()
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, h, *lora)
        return tuple([y.view(*ctx.leading, y.shape[-1]) for y in ys])

    @staticmethod
    @once_differentiable
    def backward(ctx, *grad_ys):  # type: ignore[reportIncompatibleMethodOverride]
        weights, _, seed, formats, scalings, dropout_p, _, slot, pending = ctx.call
        x, h, *lora = ctx.saved_tensors
        g = len(lora) // 2
        lora_A, lora_B = lora[:g], lora[g:]
        needs_dx = ctx.needs_input_grad[1]
        grads = [None if grad is None else grad.reshape(-1, grad.shape[-1]) for grad in grad_ys]
        grads = _or_zeros(grads, x, lora_B)
        rows = None if slot is None else Rows(slot, pending, 1 + g, 1 + 3 * g)
        how = seed, formats, scalings, dropout_p, needs_dx, rows
        dx, dA, dB = _run_backward(grads, x, h, weights, lora_A, lora_B, *how)
        if rows is not None:
            rows.end()
        if not needs_dx:
            return None, None, *dA, *dB
        dx = dx if dx.dtype == ctx.dtype else dx.to(ctx.dtype)
        return None, dx.view(*ctx.leading, dx.shape[-1]), *dA, *dB
