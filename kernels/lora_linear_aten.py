"""The CPU path of the fused LoRA linear. Formulas, names and rows are those of lora_linear.py.

Everything is computed in fp32. A 16-bit X, W or dY is widened first, the LoRA part is added to the fp32
product, and the sum is rounded once: the same rounding as cuBLAS's fp32 accumulator, and overflow and
underflow in it are counted exactly. A 16-bit GEMM is no faster on a chip that has one and 120 times slower on
one that has not.

What it saves against PEFT's LoRA linear: one GEMM for the A of a group; the LoRA product added into the base
product in place; no stored dropout mask; X or dropout(X) kept, never both; statistics of X only if an output
shows that they are needed. Dropout is a hash of seed and position in a compiled loop, else indices drawn at random.
"""

import math
from collections.abc import Iterable, Sequence

import numpy
import torch
from torch import Tensor

from . import cpu
from .reduce import FIELDS, N_FIELDS
from .tensor_stats_aten import round_with_stats_cpu, tensor_stats_cpu

N_NAN, N_INF, N_OVERFLOW, N_UNDERFLOW = (
    FIELDS.index(field) for field in ("n_nan", "n_inf", "n_overflow", "n_underflow")
)


def dropped_indices(numel: int, seed: Tensor, p: float) -> Tensor:
    """Flat indices to set to zero without a compiled loop, int64, with repeats; a function of `seed` alone.

    Poisson(n lambda) draws with replacement hit every element a Poisson(lambda) number of times,
    independently. With lambda = -ln(1 - p) each is spared with probability exactly 1 - p: dropout, at the
    cost of p n random numbers instead of n.
    """
    generator = torch.Generator().manual_seed(int(seed))
    mean = torch.tensor(-math.log1p(-p) * numel, dtype=torch.float64)
    count = int(torch.poisson(mean, generator=generator)) if numel else 0
    return torch.randint(max(numel, 1), (count,), generator=generator)


def _drop_(x: Tensor, seed: Tensor | None, p: float) -> Tensor:
    """Sets dropped elements of a contiguous fp32 tensor to zero, in place; 1 / (1 - p) is the caller's."""
    if p > 0:
        assert seed is not None
        if cpu.AVAILABLE:
            return cpu.drop(x, int(seed), p, out=x)
        x.view(-1).index_fill_(0, dropped_indices(x.numel(), seed, p), 0.0)
    return x


def dropout(x: Tensor, seed: Tensor | None, p: float) -> Tensor:
    """fp32 `x` with dropped elements set to zero, 1 / (1 - p) left to the caller; `x` itself if p = 0."""
    if p > 0 and cpu.AVAILABLE:
        assert seed is not None
        return cpu.drop(x, int(seed), p, out=torch.empty_like(x))
    return _drop_(x.clone(), seed, p) if p > 0 else x


def _add_dropped_(acc: Tensor, x: Tensor, seed: Tensor | None, p: float) -> Tensor:
    """acc += dropout'(x), in place; x may be overwritten."""
    if cpu.AVAILABLE:
        assert seed is not None
        return cpu.drop(x, int(seed), p, out=acc, added_to=acc)
    return acc.add_(_drop_(x, seed, p))


class _Rows:
    """Rows of statistics of one call, filled one by one; null at first. Nothing in them without statistics.

    In NumPy: a step has thousands of these numbers, and a tensor is slow to look at one by one.
    """

    def __init__(self, count: int, wanted: bool):
        self._wanted = wanted
        self._values = numpy.full((count if wanted else 0, N_FIELDS), numpy.nan)

    def count(self, index: int, x: Tensor) -> None:
        """Row `index`: that of a stored contiguous tensor."""
        if not self._wanted:
            return
        if cpu.AVAILABLE:
            cpu.stats_into(self._values, index, x)
        else:
            self._values[index] = tensor_stats_cpu(x, False).numpy()

    def round(self, index: int, acc: Tensor, dtype: torch.dtype) -> Tensor:
        """A contiguous fp32 `acc` in `dtype`; row `index`: what that did to it."""
        if not self._wanted:
            return acc.to(dtype)
        if dtype == torch.float32:
            self.count(index, acc)
            self._values[index, [N_OVERFLOW, N_UNDERFLOW]] = 0
            return acc
        if cpu.AVAILABLE and acc.numel():
            stored = torch.empty_like(acc, dtype=dtype)
            cpu.stats_into(self._values, index, acc, stored)
            return stored
        stored, row = round_with_stats_cpu(acc, dtype, full=False)
        self._values[index] = row.numpy()
        return stored

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
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Outputs, [H] or [H, dropout(X)], rows. H includes the factor s / (1 - p)."""
    x32 = x.float()
    x_hat = dropout(x32, seed, dropout_p)
    h = x_hat @ torch.cat(list(lora_A)).t() if len(lora_A) > 1 else x_hat @ lora_A[0].t()
    ranks = [a.shape[0] for a in lora_A]
    ys, rows = [], _Rows(1 + len(ranks), with_stats)
    for i, (weight, bias, b, s, h_i) in enumerate(
        zip(weights, biases, lora_B, scalings, h.split(ranks, dim=1), strict=True)
    ):
        h_i.mul_(s / (1 - dropout_p))
        w32 = weight.float()
        acc = torch.addmm(bias.float(), x32, w32.t()) if bias.numel() else x32 @ w32.t()
        ys.append(rows.round(1 + i, acc.addmm_(h_i, b.t()), x.dtype))
    if with_stats:
        rows.input(x, y_index=1)
        for i in range(len(ranks)):
            rows.after_product(1 + i, rows.finite(0))
    saved = [h, x_hat] if x_hat is not x32 and x32 is x else [h]
    return ys, saved, rows.tensor()


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
    """dX, every dA, every dB, rows. `x` is dropout(X) where `forward` kept it, else X."""
    ranks = [a.shape[0] for a in lora_A]
    group = len(ranks)
    rows = _Rows(1 + 3 * group, with_stats)
    gs, dBs = [], []
    acc = None
    for i, (grad, weight, b, s, h_i) in enumerate(
        zip(grads, weights, lora_B, scalings, h.split(ranks, dim=1), strict=True)
    ):
        grad = grad.contiguous()
        rows.count(i, grad)
        grad32 = grad.float()
        gs.append(grad32 @ (b * (s / (1 - dropout_p))))
        dBs.append((h_i.t() @ grad32).t().contiguous())  # a third of the time of dY^T H
        if needs_dx:
            w32 = weight.float()
            acc = grad32 @ w32 if acc is None else acc.addmm_(grad32, w32)
    g = torch.cat(gs, dim=1) if group > 1 else gs[0]
    x_hat = x if x.dtype == torch.float32 else _drop_(x.float(), seed, dropout_p)
    dA = g.t() @ x_hat
    dAs = [dA] if group == 1 else [part.clone() for part in dA.split(ranks)]

    dx = x.new_empty(0)
    if acc is not None:
        a = torch.cat(list(lora_A)) if group > 1 else lora_A[0]
        acc = acc.addmm_(g, a) if dropout_p == 0 else _add_dropped_(acc, g @ a, seed, dropout_p)
        dx = rows.round(group, acc, x.dtype)
    if with_stats:
        _count_gradients(rows, dAs, dBs, h, needs_dx)
    return dx, dAs, dBs, rows.tensor()


def _count_gradients(rows: _Rows, dA: list[Tensor], dB: list[Tensor], h: Tensor, needs_dx: bool) -> None:
    """Rows lora_A.grad..., lora_B.grad..., behind those of grad_out and grad_in. Their inputs are dY and H."""
    group = len(dA)
    finite = [rows.finite(i) for i in range(group)]
    if needs_dx:
        rows.after_product(group, all(finite))
    h_finite = _finite_values(h)
    for i, (grad, ok) in enumerate(zip(dA + dB, finite * 2, strict=True), start=1 + group):
        rows.round(i, grad, torch.float32)
        rows.after_product(i, ok and h_finite)
