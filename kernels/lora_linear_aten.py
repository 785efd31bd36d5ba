"""The CPU path of the fused LoRA linear. Formulas, names and rows are those of lora_linear.py.

Everything is computed in fp32. The product of a 16-bit X or dY with W is one in fp32 (frozen_product.py), the LoRA
part is added to it, and the sum is rounded once: the same rounding as cuBLAS's fp32 accumulator, and overflow and
underflow in it are counted exactly.

What it saves against PEFT's LoRA linear: the products with A and B, dropout, rounding and statistics share a pass
over memory (lora_passes.py); no dropout mask and no dropout(X) is kept; statistics of X only if an output shows that
they are needed.
"""

import math
from collections.abc import Iterable, Sequence

import numpy
import torch
from torch import Tensor

from . import cpu, lora_passes
from .frozen_product import multiplies_in_tiles, project, project_back
from .reduce import FIELDS, N_FIELDS
from .tensor_stats_aten import tensor_stats_cpu

N_NAN, N_INF, N_OVERFLOW = (FIELDS.index(field) for field in ("n_nan", "n_inf", "n_overflow"))


class _Rows:
    """Rows of statistics of one call, filled one by one; null at first. Nothing in them without statistics.

    In NumPy: a step has thousands of these numbers, and a tensor is slow to look at one by one.
    """

    def __init__(self, count: int, wanted: bool):
        self._wanted = wanted
        self._values = numpy.full((count if wanted else 0, N_FIELDS), numpy.nan)

    def at(self, index: int) -> numpy.ndarray | None:
        """Row `index`, to be written; None without statistics."""
        return self._values[index] if self._wanted else None

    def gradient(self, index: int, x: Tensor) -> None:
        """Row `index`: that of a contiguous fp32 tensor, which nobody rounded."""
        if cpu.AVAILABLE:
            cpu.stats_into(self._values[index], x)
        else:
            self._values[index] = tensor_stats_cpu(x, False).numpy()
        self._values[index, N_OVERFLOW : N_OVERFLOW + 2] = 0

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


def _finite_values(x: Tensor) -> bool:
    """Whether every fp32 value is finite, in one pass: their sum cannot overflow in double."""
    return math.isfinite(float(x.sum(dtype=torch.float64)))


def forward(
    x: Tensor,
    weights: Iterable[Tensor],
    biases: Sequence[Tensor],
    lora_A: Sequence[Tensor],
    lora_B: Sequence[Tensor],
    seed: Tensor | None,
    scalings: Sequence[float],
    dropout_p: float,
    with_stats: bool,
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Outputs, H, rows. H includes the factor s / (1 - p)."""
    h, wide = lora_passes.down(x, _stacked(lora_A), seed, dropout_p, widen=not multiplies_in_tiles(x))
    ranks = [a.shape[0] for a in lora_A]
    ys, rows = [], _Rows(1 + len(ranks), with_stats)
    for i, (weight, bias, b, s, h_i) in enumerate(
        zip(weights, biases, lora_B, scalings, h.split(ranks, dim=1), strict=True)
    ):
        h_i.mul_(s / (1 - dropout_p))
        acc = project(wide, weight, bias if bias.numel() else None)
        ys.append(lora_passes.up(acc, h_i, b.t(), x.dtype, rows.at(1 + i)))
    if with_stats:
        rows.input(x, y_index=1)
        for i in range(len(ranks)):
            rows.after_product(1 + i, rows.finite(0))
    return ys, h, rows.tensor()


def backward(
    grads: Sequence[Tensor],
    x: Tensor,
    h: Tensor,
    weights: Iterable[Tensor],
    lora_A: Sequence[Tensor],
    lora_B: Sequence[Tensor],
    seed: Tensor | None,
    scalings: Sequence[float],
    dropout_p: float,
    needs_dx: bool,
    with_stats: bool,
) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor]:
    """dX, every dA, every dB, rows."""
    ranks = [a.shape[0] for a in lora_A]
    group = len(ranks)
    rows = _Rows(1 + 3 * group, with_stats)
    g, dBs = torch.empty_like(h), []
    acc = None
    for i, (dy, weight, b, s, h_i, g_i) in enumerate(
        zip(grads, weights, lora_B, scalings, h.split(ranks, dim=1), g.split(ranks, dim=1), strict=True)
    ):
        right, widen = b.t() * (s / (1 - dropout_p)), needs_dx and not multiplies_in_tiles(dy)
        wide, dB = lora_passes.grad(dy.contiguous(), h_i, right, g_i, rows.at(i), widen)
        dBs.append(dB)
        if needs_dx:
            acc = project_back(wide, weight, acc)
    dA = lora_passes.da(g, x, seed, dropout_p)
    dAs = [dA] if group == 1 else [part.clone() for part in dA.split(ranks)]

    dx = x.new_empty(0)
    if acc is not None:
        dx = lora_passes.up(acc, g, _stacked(lora_A), x.dtype, rows.at(group), seed, dropout_p)
    if with_stats:
        _count_gradients(rows, dAs, dBs, h, needs_dx)
    return dx, dAs, dBs, rows.tensor()


def _stacked(lora: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(lora)) if len(lora) > 1 else lora[0]


def _count_gradients(rows: _Rows, dA: list[Tensor], dB: list[Tensor], h: Tensor, needs_dx: bool) -> None:
    """Rows lora_A.grad..., lora_B.grad..., behind those of grad_out and grad_in. Their inputs are dY and H."""
    group = len(dA)
    finite = [rows.finite(i) for i in range(group)]
    if needs_dx:
        rows.after_product(group, all(finite))
    h_finite = _finite_values(h)
    for i, (grad, ok) in enumerate(zip(dA + dB, finite * 2, strict=True), start=1 + group):
        rows.gradient(i, grad)
        rows.after_product(i, ok and h_finite)
