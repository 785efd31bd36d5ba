"""The CPU path of the fused LoRA linear. Formulas, names and rows are those of lora_linear.py.

Everything is computed in fp32. A 16-bit X, W or dY is widened first, the LoRA part is added to the fp32
product, and the sum is rounded once: the same rounding as cuBLAS's fp32 accumulator, and overflow and
underflow in it are counted exactly. A 16-bit GEMM is no faster on a chip that has one and 120 times slower on
one that has not.

What it saves against PEFT's LoRA linear: one GEMM for the A of a group; the LoRA product added into the base
product in place; dropout by index instead of a mask; X or dropout(X) kept, never both; statistics of X only
if an output shows that they are needed.
"""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .reduce import FIELDS, N_FIELDS
from .tensor_stats_aten import round_with_stats_cpu, tensor_stats_cpu

N_NAN, N_INF, N_OVERFLOW = (FIELDS.index(field) for field in ("n_nan", "n_inf", "n_overflow"))

_NO_ROW = torch.empty(0, dtype=torch.float64)


def dropped_indices(numel: int, seed: Tensor, p: float) -> Tensor:
    """Flat indices to set to zero, int64, with repeats; a function of `seed` alone.

    Poisson(n lambda) draws with replacement hit every element a Poisson(lambda) number of times,
    independently. With lambda = -ln(1 - p) each is spared with probability exactly 1 - p: dropout, at the
    cost of p n random numbers. At M=512, K=576, p=0.05 that is 0.2 ms against the 8 ms of `F.dropout`.
    """
    generator = torch.Generator().manual_seed(int(seed))
    mean = torch.tensor(-math.log1p(-p) * numel, dtype=torch.float64)
    count = int(torch.poisson(mean, generator=generator)) if numel else 0
    return torch.randint(max(numel, 1), (count,), generator=generator)


def _drop_(x: Tensor, seed: Tensor | None, p: float) -> Tensor:
    """Sets dropped elements of a contiguous tensor to zero, in place; 1 / (1 - p) is the caller's."""
    if p > 0:
        assert seed is not None
        x.view(-1).index_fill_(0, dropped_indices(x.numel(), seed, p), 0.0)
    return x


def _drop(x: Tensor, seed: Tensor | None, p: float) -> Tensor:
    return _drop_(x.clone(), seed, p) if p > 0 else x


def _rounded(acc: Tensor, dtype: torch.dtype, with_stats: bool) -> tuple[Tensor, Tensor]:
    """`acc` in `dtype`, and its row with overflow and underflow (nothing without statistics)."""
    if not with_stats:
        return acc.to(dtype), _NO_ROW
    return round_with_stats_cpu(acc, dtype, full=False)


def _all_finite(row: Tensor) -> bool:
    return float(row[N_NAN] + row[N_INF]) == 0


def _finite_values(x: Tensor) -> bool:
    """Whether every fp32 value is finite, in one pass: their sum cannot overflow in double."""
    return math.isfinite(float(x.sum(dtype=torch.float64)))


def _after_product(row: Tensor, inputs_finite: bool) -> Tensor:
    """Applies the rule that after a product of finite inputs every infinity is an overflow."""
    if inputs_finite:
        row[N_OVERFLOW] = row[N_INF]
    return row


def _null_row() -> Tensor:
    return torch.full((N_FIELDS,), math.nan, dtype=torch.float64)


def _forward_rows(x: Tensor, out_rows: Sequence[Tensor]) -> Tensor:
    """Rows in, out, out, ... Non-finite X makes a row of every Y non-finite: finite Y, finite X."""
    row = _null_row()
    row[N_NAN], row[N_INF], row[-1] = 0, 0, x.numel()
    if not _all_finite(out_rows[0]):
        row[N_NAN], row[N_INF] = x.isnan().sum(), x.isinf().sum()
    in_finite = _all_finite(row)
    return torch.stack([row, *(_after_product(r, in_finite) for r in out_rows)])


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
    x_hat = _drop(x32, seed, dropout_p)
    h = x_hat @ torch.cat(list(lora_A)).t() if len(lora_A) > 1 else x_hat @ lora_A[0].t()
    ranks = [a.shape[0] for a in lora_A]
    ys, rows = [], []
    for weight, bias, b, s, h_i in zip(weights, biases, lora_B, scalings, h.split(ranks, dim=1), strict=True):
        h_i.mul_(s / (1 - dropout_p))
        w32 = weight.float()
        acc = torch.addmm(bias.float(), x32, w32.t()) if bias.numel() else x32 @ w32.t()
        y, row = _rounded(acc.addmm_(h_i, b.t()), x.dtype, with_stats)
        ys.append(y)
        rows.append(row)
    saved = [h, x_hat] if x_hat is not x32 and x32 is x else [h]
    return ys, saved, _forward_rows(x, rows) if with_stats else torch.empty(0, N_FIELDS, dtype=torch.float64)


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
    gs, dBs, grad_rows = [], [], []
    acc = None
    for grad, weight, b, s, h_i in zip(grads, weights, lora_B, scalings, h.split(ranks, dim=1), strict=True):
        grad = grad.contiguous()
        if with_stats:
            grad_rows.append(tensor_stats_cpu(grad, False))
        grad32 = grad.float()
        gs.append(grad32 @ (b * (s / (1 - dropout_p))))
        dBs.append((h_i.t() @ grad32).t().contiguous())  # a third of the time of dY^T H
        if needs_dx:
            w32 = weight.float()
            acc = grad32 @ w32 if acc is None else acc.addmm_(grad32, w32)
    g = torch.cat(gs, dim=1) if len(gs) > 1 else gs[0]
    x_hat = x if x.dtype == torch.float32 else _drop_(x.float(), seed, dropout_p)
    dA = g.t() @ x_hat
    dAs = [dA] if len(ranks) == 1 else [part.clone() for part in dA.split(ranks)]

    dx, dx_row = x.new_empty(0), None
    if acc is not None:
        a = torch.cat(list(lora_A)) if len(lora_A) > 1 else lora_A[0]
        acc = acc.addmm_(g, a) if dropout_p == 0 else acc.add_(_drop_(g @ a, seed, dropout_p))
        dx, dx_row = _rounded(acc, x.dtype, with_stats)
    rows = torch.empty(0, N_FIELDS, dtype=torch.float64)
    if with_stats:
        rows = _backward_rows(grad_rows, dx_row, dAs, dBs, h)
    return dx, dAs, dBs, rows


def _backward_rows(
    grad_rows: list[Tensor], dx_row: Tensor | None, dA: list[Tensor], dB: list[Tensor], h: Tensor
) -> Tensor:
    """Rows grad_out..., grad_in, lora_A.grad..., lora_B.grad... A LoRA gradient's inputs are dY and H."""
    finite = [_all_finite(row) for row in grad_rows]
    grad_in = _null_row() if dx_row is None else _after_product(dx_row, all(finite))
    h_finite = _finite_values(h)
    lora_rows = [
        _after_product(_rounded(grad, torch.float32, True)[1], ok and h_finite)
        for grad, ok in zip(dA + dB, finite * 2, strict=True)
    ]
    return torch.stack([*grad_rows, grad_in, *lora_rows])
