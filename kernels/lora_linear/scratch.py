"""Bytes that the operators of a LoRA linear take beside what they return, in the order of aten.py, passes.py and
launch.py, whose functions have the same names here.

M tokens, K in, N_i out, r_i the ranks, R their sum. Of the loops over a group each turn's tensors live until the next
one's are made. What depends on values is left out: a tensor that is not finite is looked at again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from .. import cpu
from ..backend import cdiv, n_multiprocessors, uses_triton
from ..frozen.nf4 import NF4Weight, decode_scratch
from ..frozen.product import multiplies_in_tiles, product_scratch
from ..ledger import FLOAT, Ledger, Matrix, Scratch, dense, low_rank, size
from ..statistics.pending_rows import PARTIAL_BYTES, ROW_BYTES
from ..statistics.tensor_stats_aten import round_scratch, stats_scratch
from .group import NO_DROPOUT, Dropout, Examples, Group
from .ops import Operands
from .passes import Cuts, n_drawn, outer_scratch
from .projections import MAX_GROUP
from .read.scratch import ReadScratch
from .shapes import down_shape, gradients_shape, up_shape
from .tiles import CAST_BLOCK, precision


def cast_scratch(x: Tensor, dtype: torch.dtype) -> Scratch:
    """Of `cast_with_stats`."""
    ledger = Ledger()
    if uses_triton(x):
        ledger.take(dense(x))
        ledger.keep(x.numel() * size(dtype))
        ledger.take(PARTIAL_BYTES * max(1, cdiv(x.numel(), CAST_BLOCK)))
    else:
        ledger.take(FLOAT * x.numel() if x.dtype != torch.float32 else 0)
        ledger.take(dense(x))
        ledger.kept += round_scratch(ledger, x.numel(), dtype)
    ledger.kept += ROW_BYTES
    return ledger.scratch()


def forward_scratch(*arguments: Any) -> Scratch:
    """Of `lora_linear`, from its arguments."""
    x, weights, biases, lora_A, lora_B, seed, slot, _, *how, _ = arguments
    group = Operands(weights, biases, lora_A, lora_B, seed, *how).group()
    ledger = Ledger()
    ledger.keep(0 if slot is None else ROW_BYTES * (1 + len(lora_A)))
    ledger.take(dense(x))
    (forward_on_gpu if uses_triton(x) else _forward)(ledger, x, group, slot is not None)
    return ledger.scratch()


def backward_scratch(*arguments: Any) -> Scratch:
    """Of `lora_linear_backward`, from its arguments; inner products are not in it, which come when the rest is free."""
    grads, x, _, weights, lora_A, lora_B, seed, *how, starts, needs_dx, with_stats, n_squares = arguments
    group = Operands(weights, (), lora_A, lora_B, seed, *how).group(Examples(starts) if len(starts) > 1 else None)
    ledger = Ledger()
    ledger.keep(8 * n_squares * (len(starts) - 1) if n_squares else 0)
    ledger.keep(ROW_BYTES * (1 + 3 * len(lora_A)) if with_stats else 0)
    ledger.take(dense(x))
    (backward_on_gpu if uses_triton(x) else _backward)(ledger, grads, x, group, (needs_dx, with_stats, n_squares > 0))
    return ledger.scratch()


class _Weights:
    """The dense weights of a group; one that is decoded lives until the next one is there."""

    def __init__(self, ledger: Ledger, group: Group, x: Tensor):
        self._ledger, self._group, self._dtype, self._k, self._decoded = ledger, group, x.dtype, x.shape[1], 0

    def next(self, i: int) -> Matrix:
        weight, n = self._group.weights[i], self._group.lora_B[i].shape[0]
        packed = isinstance(weight, NF4Weight)
        new = decode_scratch(self._ledger, weight, (n, self._k), self._dtype) if isinstance(weight, NF4Weight) else 0
        self._ledger.give(self._decoded)
        self._decoded = new
        return Matrix(n, self._k, self._dtype if packed else weight.dtype)

    def end(self) -> None:
        self._ledger.give(self._decoded)


def _ranks(group: Group) -> list[int]:
    return [a.shape[0] for a in group.lora_A]


def _forward(ledger: Ledger, x: Tensor, group: Group, with_stats: bool) -> None:
    (m, k), ranks = x.shape, _ranks(group)
    widen = x.dtype != torch.float32 and not multiplies_in_tiles(x)
    _down(ledger, x, ranks, group.dropout, widen)
    wide = Matrix(m, k, torch.float32 if widen else x.dtype)
    weights, old = _Weights(ledger, group, x), 0
    for i, (rank, bias) in enumerate(zip(ranks, group.biases, strict=True)):
        weight = weights.next(i)
        acc = ledger.take(FLOAT * m * weight.n_rows)
        in_float = ledger.take(FLOAT * weight.n_rows if bias is not None and bias.dtype != torch.float32 else 0)
        product_scratch(ledger, wide, weight)
        ledger.give(in_float, old)
        old = _up(ledger, Matrix(m, weight.n_rows, x.dtype), [rank], NO_DROPOUT, with_stats, acc)


def _down(ledger: Ledger, x: Tensor, ranks: Sequence[int], dropout: Dropout, widen: bool) -> None:
    (m, k), rank = x.shape, sum(ranks)
    in_float = FLOAT * m * k if x.dtype != torch.float32 else 0
    if cpu.AVAILABLE:
        ledger.take(in_float if widen else 0)
        ledger.keep(FLOAT * m * rank)
        ledger.within(low_rank((m, k, rank), n_rights=len(ranks), n_outers=0))
        return
    ledger.take(in_float)
    scaled = sum([ledger.beside_number(FLOAT * own * k, torch.float32) for own in ranks])
    stacked = ledger.take(scaled)
    ledger.give(scaled)
    dropped = _dropped(ledger, m * k, dropout)
    ledger.keep(FLOAT * m * rank)
    ledger.give(stacked, dropped, 0 if widen else in_float)


def _dropped(ledger: Ledger, n: int, dropout: Dropout) -> int:
    if dropout.p == 0:
        return 0
    copy = ledger.take(FLOAT * n)
    _drop(ledger, n, dropout)
    return copy


def _drop(ledger: Ledger, n: int, dropout: Dropout) -> None:
    """Indices are drawn at random; of a seed that has no value yet as many as on average."""
    if isinstance(dropout.seed, FakeTensor) or dropout.seed is None or dropout.seed.is_meta:
        count = round(-math.log1p(-dropout.p) * n)
    else:
        count = n_drawn(n, torch.Generator().manual_seed(int(dropout.seed)), dropout.p)
    ledger.within(2 * 8)  # the mean, and the number drawn
    ledger.within(8 * count)


def _up(
    ledger: Ledger, shape: Matrix, ranks: Sequence[int], dropout: Dropout, with_stats: bool, acc: int
) -> int:  # fmt: skip
    """Bytes of ACC, which is still there; in fp32 it is the result and counts as such."""
    m, n, dtype = shape
    if cpu.AVAILABLE:
        ledger.keep(0 if dtype == torch.float32 else size(dtype) * m * n)
        ledger.within(low_rank((m, n, sum(ranks)), len(ranks), 0, is_update=True))
    else:
        right = ledger.take(FLOAT * sum(ranks) * n)
        if dropout.p > 0:
            delta = ledger.take(FLOAT * m * n)
            _drop(ledger, m * n, dropout)
            ledger.give(delta)
        if with_stats:
            ledger.kept += round_scratch(ledger, m * n, dtype, full=False)
            ledger.give(ROW_BYTES)
        else:
            ledger.keep(0 if dtype == torch.float32 else size(dtype) * m * n)
        ledger.give(right)
    if dtype == torch.float32:
        ledger.kept += acc
        return 0
    return acc


def _backward(
    ledger: Ledger, grads: Sequence[Tensor], x: Tensor, group: Group, wanted: tuple[bool, bool, bool]
) -> None:  # fmt: skip
    (m, k), ranks, (needs_dx, with_stats, with_squares) = x.shape, _ranks(group), wanted
    examples = None if group.examples is None else (group.examples.starts, with_squares)
    widen = x.dtype != torch.float32 and needs_dx and not multiplies_in_tiles(x)
    ledger.take(FLOAT * m * sum(ranks))
    weights, old, acc = _Weights(ledger, group, x), 0, 0
    for i, (dy, rank) in enumerate(zip(grads, ranks, strict=True)):
        weight = weights.next(i)
        new = _grad(ledger, dy, rank, widen, with_stats, examples)
        ledger.give(old)
        old = new
        if needs_dx:
            acc = acc or ledger.take(FLOAT * m * k)
            product_scratch(ledger, Matrix(m, weight.n_rows, torch.float32 if widen else x.dtype), weight)
    _da(ledger, x, group, with_stats, examples)
    if needs_dx:
        _up(ledger, Matrix(m, k, x.dtype), ranks, group.dropout, with_stats, acc)


def _grad(ledger: Ledger, dy: Tensor, rank: int, widen: bool, with_stats: bool, examples: Cuts) -> int:
    """Bytes of what it returns of dY beside dY itself."""
    m, n = dy.shape
    copy = ledger.take(dense(dy))
    in_float = FLOAT * m * n if dy.dtype != torch.float32 else 0
    if cpu.AVAILABLE:
        wide = ledger.take(in_float if widen else 0)
        ledger.keep(FLOAT * n * rank)
        ledger.within(low_rank((m, n, rank), n_rights=1, n_outers=1, examples=examples))
    else:
        wide = ledger.take(in_float)
        product = ledger.take(FLOAT * m * rank)
        ledger.beside_number(0, torch.float32)
        ledger.give(product)
        db = outer_scratch(ledger, [rank], n, examples)
        ledger.give(db if ledger.transpose(n, rank) else 0)
        ledger.kept += db
        if with_stats:
            stats_scratch(ledger, m * n, dy.dtype, full=False)
            ledger.give(ROW_BYTES)
            stats_scratch(ledger, n * rank, torch.float32, full=False)
            ledger.give(ROW_BYTES)
        ledger.total(m * rank, copied=8 * m * rank)  # of H in double
        if not widen:
            ledger.give(wide)
            wide = 0
    if wide:
        ledger.give(copy)
        return wide
    return copy


def _da(ledger: Ledger, x: Tensor, group: Group, with_stats: bool, examples: Cuts) -> None:
    (m, k), ranks, dropout = x.shape, _ranks(group), group.dropout
    rank = sum(ranks)
    if cpu.AVAILABLE:
        ledger.keep(FLOAT * rank * k)
        ledger.within(low_rank((m, k, rank), n_rights=0, n_outers=len(ranks), examples=examples))
        return
    in_float = ledger.take(FLOAT * m * k if x.dtype != torch.float32 else 0)
    if dropped := _dropped(ledger, m * k, dropout):
        ledger.give(in_float)
        in_float = dropped
    product = outer_scratch(ledger, ranks, k, examples)
    ledger.give(in_float)
    ledger.keep(FLOAT * rank * k)
    ledger.give(product)
    for own in ranks if with_stats else ():
        stats_scratch(ledger, own * k, torch.float32, full=False)
        ledger.give(ROW_BYTES)


def forward_on_gpu(ledger: Ledger, x: Tensor, group: Group, with_stats: bool) -> None:
    """Partials wait for those who write rows."""
    (m, k), ranks, n_sm = x.shape, _ranks(group), n_multiprocessors(x.device)
    n, h = len(ranks), FLOAT * m * sum(ranks)
    stacked = ledger.take(FLOAT * sum(ranks) * k if n > 1 else 0)
    shape = down_shape(m, k, sum(ranks), precision(x), n_sm)
    parts, is_split = ledger.take(h * shape.splits), shape.splits > 1
    ledger.wait(PARTIAL_BYTES * shape.n_programs if with_stats else 0)
    ledger.give(stacked)
    weights = _Weights(ledger, group, x)
    for i, bias in enumerate(group.biases):
        weight = weights.next(i)
        cast = ledger.take(size(x.dtype) * weight.n_rows * k if weight.dtype != x.dtype else 0)
        cast_bias = ledger.take(size(x.dtype) * weight.n_rows if bias is not None and bias.dtype != x.dtype else 0)
        ledger.keep(size(x.dtype) * m * weight.n_rows)
        ledger.give(cast, cast_bias)
    weights.end()
    if n > MAX_GROUP:
        ledger.take(h)
        ledger.give(parts if with_stats else 0)  # else there is no other place for "no partials"
        is_split = False
    for start in range(0, n, MAX_GROUP):
        cols = tuple(b.shape[0] for b in group.lora_B[start : start + MAX_GROUP])
        shape = up_shape(m, cols, tuple(ranks[start : start + MAX_GROUP]), precision(x))
        ledger.wait(PARTIAL_BYTES * shape.grid[0] * shape.grid[1] if with_stats else 0)
        ledger.take(h if is_split else 0)
    ledger.kept += h
    ledger.give(parts if is_split else 0)


def backward_on_gpu(
    ledger: Ledger, grads: Sequence[Tensor], x: Tensor, group: Group, wanted: tuple[bool, bool, bool]
) -> None:  # fmt: skip
    """As forward."""
    (m, k), ranks, (needs_dx, with_stats, with_squares) = x.shape, _ranks(group), wanted
    read = ReadScratch(ledger, x, group.examples, with_stats, with_squares)
    ledger.take(sum(dense(dy) for dy in grads))
    ledger.take(FLOAT * m * sum(ranks))
    weights = _Weights(ledger, group, x)
    for i in range(len(grads) if needs_dx else 0):
        weight = weights.next(i)
        cast = ledger.take(size(x.dtype) * weight.n_rows * k if weight.dtype != x.dtype else 0)
        ledger.keep(size(x.dtype) * m * k if i == 0 else 0)
        ledger.give(cast)
    old_h, old_b, old_a, n_sites = 0, 0, 0, 0
    for start in range(0, len(grads), MAX_GROUP):
        some = slice(start, start + MAX_GROUP)
        own = sum(ranks[some])
        new_h = ledger.take(FLOAT * m * own if len(grads) > MAX_GROUP and m > 1 else 0)
        ledger.give(old_h)
        old_h = new_h
        cols = tuple(b.shape[0] for b in group.lora_B[some])
        new_b, partials = read.grad(cols, tuple(ranks[some]))
        n_sites += partials
        ledger.give(old_b)
        new_a = read.da(tuple(ranks[some]))
        ledger.give(old_a)
        old_b, old_a = new_b, new_a
        shape = gradients_shape(tuple(t.shape for t in (*group.lora_A[some], *group.lora_B[some])))
        ledger.keep(FLOAT * shape.n)
        ledger.wait(PARTIAL_BYTES * sum(shape.n_programs) if with_stats else 0)
        read.total(sum(shape.n_programs))
    if needs_dx:
        stacked = ledger.take(FLOAT * sum(ranks) * k if len(ranks) > 1 else 0)
        shape = up_shape(m, (k,), (sum(ranks),), precision(x))
        ledger.wait(PARTIAL_BYTES * shape.grid[0] * shape.grid[1] if with_stats else 0)
        ledger.give(stacked)
        if with_stats and len(ranks) > 2 * MAX_GROUP:
            ledger.wait(PARTIAL_BYTES * n_sites)
