"""The fused LoRA linear as operators that torch knows, and directly: formulas, shapes and rows are in __init__.py.

The operators are for whoever has to see them: torch.compile, fake tensors, a dispatch mode. Everybody else takes
`directly`. The two have other arguments: an operator takes tensors and numbers alone, x [M, K] in the dtype it computes
in, and returns the rows of statistics. The direct route takes any leading dimensions, because a view that autograd sees
costs two more calls, rounds x as autocast does, and lets rows wait for others.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backend import is_gpu, segment_sums, uses_triton
from ..frozen.nf4 import NF4Weight
from ..operators import Saved, direct, operator, store
from ..statistics.pending_rows import Partials, PendingRows, Rows
from ..statistics.reduce import N_FIELDS, reduce_partials
from ..statistics.tensor_stats_aten import round_with_stats_cpu
from . import aten, launch, passes
from .group import Dropout, Examples, Group

_NOTHING = nullcontext()
WIDENED = 1 << 20
"""Values of a dY that are there in fp32 at once where inner products are asked for: 4 MiB."""


def _cast_back(grads: Any, _tensors: Any, dtype: torch.dtype, _needs: Any) -> tuple:
    return grads[0].to(dtype), None


@operator("cast_with_stats", lambda inputs, output: ((), inputs[0].dtype), _cast_back)
def cast_with_stats(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`x` in a 16-bit dtype, and the row of the result, overflow and underflow included."""
    if uses_triton(x):
        out, site = launch.cast(x, dtype)
        return out, reduce_partials(site.buffer, x.numel())
    return round_with_stats_cpu(x.float(), dtype)


@cast_with_stats.register_fake
def _(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=dtype), x.new_empty(N_FIELDS, dtype=torch.float64)


def _run(x: Tensor, group: Group, rows: Rows | None) -> tuple[list[Tensor], Tensor]:
    """Outputs, and H [M, sum of ranks] in fp32 for backward; statistics go to `rows` [1 + g, 9]."""
    with _without_autocast(x):
        if uses_triton(x):
            return launch.forward(x.contiguous(), group, rows)
        ys, h, found = aten.forward(x.contiguous(), group, rows is not None)
    if rows is not None:
        rows.assign(found)
    return ys, h


def _run_backward(
    grads: list[Tensor], x: Tensor, h: Tensor, group: Group, needs_dx: bool, rows: Rows | None
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """dX ([0] if not needed), every dA, every dB; statistics go to `rows` [1 + 3 g, 9]."""
    with _without_autocast(x):
        if uses_triton(x):
            dx, dA, dB = launch.backward(grads, x.contiguous(), h, group, needs_dx, rows)
        else:
            dx, dA, dB, found = aten.backward(grads, x.contiguous(), h, group, needs_dx, rows is not None)
            if rows is not None:
                rows.assign(found)
    squares = None if group.examples is None else group.examples.squares
    if squares is not None and squares.shape[1] > 2 * len(dA):
        with torch.autocast(x.device.type, enabled=False):
            squares[:, -1] = _inner_products(grads, x.contiguous(), h, group, (dA, dB))
    return dx, dA, dB


def _inner_products(
    grads: Sequence[Tensor], x: Tensor, h: Tensor, group: Group, gradients: tuple[list[Tensor], list[Tensor]]
) -> Tensor:
    """<g_e, sum of all g_e> for what example e adds to every dA_i and dB_i, float64 [E]: by token

    <dA_i,e, dA_i> = sum over t of e of (s_i dY_i B_i)[t] . (dropout(X) dA_i^T)[t]
    <dB_i,e, dB_i> = sum over t of e of (s_i H_i)[t] . (dY_i dB_i)[t]
    """
    assert group.examples is not None
    dA, dB = gradients
    ranks, factors = [a.shape[0] for a in dA], group.factors
    if uses_triton(x):  # the very call of the forward pass but for A: it compiles nothing new
        along = launch.down(x, torch.cat(dA), group.dropout, True)[0].sum(0)
    else:
        along = passes.down(x, dA, [1.0] * len(dA), group.dropout, widen=False)[0]
    h_factors = factors if uses_triton(x) else [1.0] * len(dA)  # on the CPU it is part of H
    of_tokens = x.new_zeros(x.shape[0], dtype=torch.float64)
    each = zip(grads, group.lora_B, dB, factors, h_factors, h.split(ranks, 1), along.split(ranks, 1), strict=True)
    for dy, b, db, factor, h_factor, own_h, own_along in each:
        right, left = torch.cat([b * factor, db * h_factor], 1), torch.cat([own_along, own_h], 1)
        step = max(1, WIDENED // dy.shape[1])
        for first in range(0, len(dy), step):
            tokens = slice(first, first + step)
            of_tokens[tokens] += ((dy[tokens].float() @ right) * left[tokens]).sum(1, dtype=torch.float64)
    return segment_sums(of_tokens, group.examples.counts)


def _without_autocast(x: Tensor) -> AbstractContextManager:
    """No autocast where products in fp32 are meant. On a GPU there are none but Triton's, and it costs 10 us."""
    casts = torch.is_autocast_enabled(x.device.type) and not is_gpu(x.device)
    return torch.autocast(x.device.type, enabled=False) if casts else _NOTHING


class Operands(NamedTuple):
    """What both operators take of a group.

    Attributes:
        weights: those of every projection, one behind the other: one tensor, or those of an NF4 weight.
        biases: an empty one for none.
        formats: of every weight how many tensors it has, blocksize and nested blocksize.
    """

    weights: Sequence[Tensor]
    biases: Sequence[Tensor]
    lora_A: Sequence[Tensor]
    lora_B: Sequence[Tensor]
    seed: Tensor | None
    formats: Sequence[int]
    scalings: Sequence[float]
    dropout_p: float

    def group(self, examples: Examples | None = None) -> Group:
        rest, weights = list(self.weights), []
        for at in range(0, len(self.formats), 3):
            n_tensors, blocksize, nested_blocksize = self.formats[at : at + 3]
            own, rest = rest[:n_tensors], rest[n_tensors:]
            weights.append(own[0] if n_tensors == 1 else NF4Weight.of(own, blocksize, nested_blocksize))
        biases = [bias if bias.numel() else None for bias in self.biases]
        dropout = Dropout(self.seed, self.dropout_p)
        return Group(weights, biases, self.lora_A, self.lora_B, self.scalings, dropout, examples)


def operands(group: Group) -> Operands:
    """The same as an operator takes it."""
    tensors, formats = [], []
    for weight in group.weights:
        own = [weight] if isinstance(weight, Tensor) else weight.tensors()
        tensors += own
        formats += [1, 0, 0] if isinstance(weight, Tensor) else [len(own), weight.blocksize, weight.nested_blocksize]
    nothing = group.lora_A[0].new_empty(0)
    biases = [nothing if bias is None else bias for bias in group.biases]
    return Operands(
        tensors, biases, group.lora_A, group.lora_B, group.dropout.seed, formats, group.scalings, group.dropout.p
    )


def _save(inputs: tuple, output: tuple) -> Saved:
    x, weights, biases, lora_A, lora_B, seed, slot, squares, *how = inputs
    # slot and squares are not among the saved tensors: those may not be written to before backward reads them
    counts = len(weights), len(biases), len(lora_A)
    return (x, output[1], seed, *weights, *lora_A, *lora_B), (slot, squares, how, *counts)


def _differentiate(grad_ys: Sequence[Tensor | None], tensors: Sequence[Tensor], kept: Any, needs: Any) -> tuple:
    slot, squares, how, n, n_biases, g = kept
    x, h, seed, *rest = tensors
    weights, lora_A, lora_B = rest[:n], rest[n : n + g], rest[n + g :]
    grads = _or_zeros(grad_ys, x, lora_B)
    wanted = needs[0], slot is not None, 0 if squares is None else squares.shape[1]
    dx, dA, dB, rows, found = _backward(grads, x, h, weights, lora_A, lora_B, seed, *how, *wanted)
    if slot is not None:
        store(slot[1 + g :], rows)
    if squares is not None:
        store(squares, found)
    return dx if needs[0] else None, [None] * n, [None] * n_biases, dA, dB, *[None] * 7


@operator("lora_linear", _save, _differentiate)
def lora_linear_op(
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    lora_A: list[Tensor],
    lora_B: list[Tensor],
    seed: Tensor | None,
    slot: Tensor | None,
    squares: Tensor | None,
    formats: list[int],
    scalings: list[float],
    dropout_p: float,
    starts: list[int],
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Outputs, H [M, sum of ranks] in fp32 for backward, rows [1 + g, 9] or [0, 9]. Backward has use for `squares` and
    `starts`, which is [0] where nobody knows the examples: autograd takes an empty list for one of tensors.
    """
    found = x.new_empty(0 if slot is None else 1 + len(lora_A), N_FIELDS, dtype=torch.float64)
    rows = None if slot is None else Rows(found)
    group = Operands(weights, biases, lora_A, lora_B, seed, formats, scalings, dropout_p).group()
    ys, h = _run(x, group, rows)
    if rows is not None:
        rows.end()
    return ys, h, found


@lora_linear_op.register_fake
def _(x, weights, biases, lora_A, lora_B, seed, slot, squares, formats, scalings, dropout_p, starts):
    ys = [x.new_empty(x.shape[0], b.shape[0]) for b in lora_B]
    h = x.new_empty(x.shape[0], sum(a.shape[0] for a in lora_A), dtype=torch.float32)
    n_rows = 0 if slot is None else 1 + len(lora_A)
    return ys, h, x.new_empty(n_rows, N_FIELDS, dtype=torch.float64)


@torch.library.custom_op("lora_train::lora_linear_backward", mutates_args=())
def _backward(
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
    starts: list[int],
    needs_dx: bool,
    with_stats: bool,
    n_squares: int,
) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor, Tensor]:
    """dX ([0] if not needed), every dA, every dB, rows [1 + 3 g, 9] or [0, 9], squares [E, n_squares] or [0, 0]."""
    found = x.new_empty(1 + 3 * len(lora_A) if with_stats else 0, N_FIELDS, dtype=torch.float64)
    rows = Rows(found) if with_stats else None
    squares = _squares(x, starts, n_squares)
    examples = Examples(starts, squares if n_squares else None) if len(starts) > 1 else None
    group = Operands(weights, (), lora_A, lora_B, seed, formats, scalings, dropout_p).group(examples)
    dx, dA, dB = _run_backward(grads, x, h, group, needs_dx, rows)
    if rows is not None:
        rows.end()
    if uses_triton(x):  # they share memory there, which what an operator returns may not
        dA, dB = [a.clone() for a in dA], [b.clone() for b in dB]
    return dx, dA, dB, found, squares


def _squares(x: Tensor, starts: list[int], n_squares: int) -> Tensor:
    return x.new_empty(len(starts) - 1 if n_squares else 0, n_squares, dtype=torch.float64)


@_backward.register_fake
def _(
    grads, x, h, weights, lora_A, lora_B, seed, formats, scalings, dropout_p, starts, needs_dx, with_stats, n_squares
):
    dx = torch.empty_like(x) if needs_dx else x.new_empty(0)
    n_rows = 1 + 3 * len(lora_A) if with_stats else 0
    rows = x.new_empty(n_rows, N_FIELDS, dtype=torch.float64)
    squares = _squares(x, starts, n_squares)
    return dx, [torch.empty_like(a) for a in lora_A], [torch.empty_like(b) for b in lora_B], rows, squares


def _or_zeros(grads: Sequence[Tensor | None], x: Tensor, lora_B: Sequence[Tensor]) -> list[Tensor]:
    """The gradient of every output; zeros where it took no part."""
    return [
        x.new_zeros(x.shape[0], b.shape[0]) if grad is None else grad for grad, b in zip(grads, lora_B, strict=True)
    ]


class Call(NamedTuple):
    """What the direct route takes beside X, and beside A and B, which autograd has to see too."""

    group: Group
    dtype: torch.dtype
    slot: Tensor | None
    pending: PendingRows | None


def _forward_directly(call: Call, x: Tensor, *lora: Tensor) -> tuple[tuple[Tensor, ...], Saved]:
    """Outputs [..., N_i]."""
    group, dtype, slot, pending = call
    leading, x_dtype = x.shape[:-1], x.dtype
    x = x.reshape(-1, x.shape[-1])
    rows = None if slot is None else Rows(slot, pending, 0, 1 + len(group.lora_A))
    found = None
    if dtype != x_dtype:
        if rows is None:
            x = x.to(dtype)
        else:
            x, found = launch.cast(x, dtype) if uses_triton(x) else round_with_stats_cpu(x.float(), dtype)
    ys, h = _run(x, group, rows)
    if rows is not None:
        if isinstance(found, Partials):  # row 0 is that of autocast's rounding, where there was one
            rows.pending.add(rows, 0, found, x.numel())
        elif found is not None:
            rows.slot[0].copy_(found)
        rows.end()
    return tuple([y.view(*leading, y.shape[-1]) for y in ys]), ((x, h, *lora), (call, leading, x_dtype))


def _backward_directly(grad_ys: Sequence[Tensor | None], tensors: Sequence[Tensor], kept: Any, needs: Any) -> tuple:
    (group, _, slot, pending), leading, x_dtype = kept
    x, h, *lora = tensors
    g = len(lora) // 2
    group = group._replace(lora_A=lora[:g], lora_B=lora[g:])
    grads = [None if grad is None else grad.reshape(-1, grad.shape[-1]) for grad in grad_ys]
    grads = _or_zeros(grads, x, group.lora_B)
    rows = None if slot is None else Rows(slot, pending, 1 + g, 1 + 3 * g)
    dx, dA, dB = _run_backward(grads, x, h, group, needs[1], rows)
    if rows is not None:
        rows.end()
    if not needs[1]:
        return None, None, *dA, *dB
    dx = dx if dx.dtype == x_dtype else dx.to(x_dtype)
    return None, dx.view(*leading, dx.shape[-1]), *dA, *dB


directly = direct(_forward_directly, _backward_directly)
