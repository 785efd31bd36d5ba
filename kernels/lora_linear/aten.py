"""The CPU path of the fused LoRA linear. Formulas, names and rows are those of __init__.py.

Everything is computed in fp32. The product of a 16-bit X or dY with W is one in fp32 (frozen/product.py), the LoRA
part is added to it, and the sum is rounded once: the same rounding as cuBLAS's fp32 accumulator, and overflow and
underflow in it are counted exactly.

What it saves against PEFT's LoRA linear: the products with A and B, dropout, rounding and statistics share a pass
over memory (passes.py); no dropout mask and no dropout(X) is kept; statistics of X only if an output shows that
they are needed.
"""

from collections.abc import Sequence

import numpy
import torch
from torch import Tensor

from ..frozen.product import multiplies_in_tiles, project, project_back
from ..statistics.reduce import FIELDS, N_FIELDS
from . import passes as lora_passes
from .group import Factor, Group

N_NAN, N_INF, N_OVERFLOW = (FIELDS.index(field) for field in ("n_nan", "n_inf", "n_overflow"))


class _Rows:
    """Rows of statistics of one call, filled one by one; null at first. Nothing in them without statistics.

    In NumPy: a step has thousands of these numbers, and a tensor is slow to look at one by one.
    """

    def __init__(self, count: int, wanted: bool):
        self._values = numpy.full((count if wanted else 0, N_FIELDS), numpy.nan)
        self._rows = list(self._values)

    def at(self, index: int) -> lora_passes.Row | None:
        """Row `index`, to be written; None without statistics."""
        return self._rows[index] if self._rows else None

    def finite(self, index: int) -> bool:
        """Whether the tensor of that row is."""
        return bool(self._values[index, N_NAN] + self._values[index, N_INF] == 0)

    def input(self, x: Tensor, y_index: int) -> None:
        """Row 0, that of X; row `y_index` is that of a Y, which has non-finite values if X has some."""
        self._values[0, [N_NAN, N_INF, -1]] = 0, 0, x.numel()
        if not self.finite(y_index):
            self._values[0, [N_NAN, N_INF]] = int(x.isnan().sum()), int(x.isinf().sum())

    def after_product(self, index: int, inputs_finite: bool) -> None:
        """Applies the rule that after a product of finite inputs every infinity is an overflow."""
        if inputs_finite:
            self._values[index, N_OVERFLOW] = self._values[index, N_INF]

    def tensor(self) -> Tensor:
        return torch.from_numpy(self._values)


def forward(x: Tensor, group: Group, with_stats: bool) -> tuple[list[Tensor], Tensor, Tensor]:
    """Outputs, H, rows. H includes the factor s / (1 - p)."""
    lora_A, n = group.lora_A, len(group.lora_A)
    h, wide = lora_passes.down(x, lora_A, group.factors, group.dropout, not multiplies_in_tiles(x))
    ys, rows, weights = [], _Rows(1 + n, with_stats), group.dense(x.dtype)
    for i, (bias, b, h_i) in enumerate(zip(group.biases, group.lora_B, _columns(h, lora_A), strict=True)):
        weight = next(weights)  # zip would hold on to those before
        acc = project(wide, weight, bias)
        ys.append(lora_passes.up(acc, h_i, Factor([b], across=True), x.dtype, rows.at(1 + i)))
    if with_stats:
        rows.input(x, y_index=1)
        for i in range(n):
            rows.after_product(1 + i, rows.finite(0))
    return ys, h, rows.tensor()


def backward(
    grads: Sequence[Tensor], x: Tensor, h: Tensor, group: Group, needs_dx: bool, with_stats: bool
) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor]:
    """dX, every dA, every dB, rows."""
    lora_A, n = group.lora_A, len(group.lora_A)
    rows = _Rows(1 + 3 * n, with_stats)
    g, dBs, h_finite = torch.empty_like(h), [], True
    acc, widen, weights = None, needs_dx and not multiplies_in_tiles(x), group.dense(x.dtype)
    each = zip(group.lora_B, group.factors, strict=True)
    for i, (dy, right, h_i, g_i) in enumerate(zip(grads, each, _columns(h, lora_A), _columns(g, lora_A), strict=True)):
        weight = next(weights)
        into = rows.at(i), rows.at(1 + 2 * n + i), group.examples, n + i
        wide, dB, finite = lora_passes.grad(dy.contiguous(), h_i, right, g_i, into, widen)
        dBs.append(dB)
        h_finite &= finite
        if needs_dx:
            acc = project_back(wide, weight, acc)
    ranks, into = [a.shape[0] for a in lora_A], [rows.at(1 + n + i) for i in range(n)]
    dAs = lora_passes.da(g, x, ranks, group.dropout, into, group.examples)

    dx = x.new_empty(0)
    if acc is not None:
        dx = lora_passes.up(acc, g, Factor(lora_A, across=False), x.dtype, rows.at(n), group.dropout)
    if with_stats:
        _count_overflow(rows, n, h_finite, needs_dx)
    return dx, dAs, dBs, rows.tensor()


def _columns(h: Tensor, lora_A: Sequence[Tensor]) -> Sequence[Tensor]:
    """The columns of each projection."""
    return [h] if len(lora_A) == 1 else h.split_with_sizes([a.shape[0] for a in lora_A], dim=1)


def _count_overflow(rows: _Rows, group: int, h_finite: bool, needs_dx: bool) -> None:
    """In the rows of grad_in and of the LoRA gradients; what went into these are dY and H."""
    finite = [rows.finite(i) for i in range(group)]
    if needs_dx:
        rows.after_product(group, all(finite))
    for i, ok in enumerate(finite):
        rows.after_product(1 + group + i, ok and h_finite)
        rows.after_product(1 + 2 * group + i, ok and h_finite)
