"""The passes of a LoRA linear over a tall matrix on the CPU: compiled, else the same in ATen.

    down    H = dropout(X) [f_1 A_1; f_2 A_2; ...]^T, and X in fp32 if asked
    up      Y += dropout'(H R), rounded, and the row of Y; R = B^T, or [A_1; A_2; ...]
    grad    G = f dY B, dB = dY^T H, the rows of dY and dB, and dY in fp32 if asked
    da      [dA_1; dA_2; ...] = G^T dropout(X), and their rows

Everything is computed in fp32. 16-bit matrices are widened, and a result is rounded once. Dropout sets values of X to
zero by seed and position and leaves the factor 1 / (1 - p) to the caller; it is a hash in the compiled loops and a list
of indices drawn at random in ATen, so the two draw different masks.
"""

import math
from collections.abc import Sequence

import numpy
import torch
from torch import Tensor

from .. import cpu
from ..statistics.reduce import FIELDS
from ..statistics.tensor_stats_aten import round_with_stats_cpu, tensor_stats_cpu

N_OVERFLOW = FIELDS.index("n_overflow")


Row = numpy.ndarray
"""Where the statistics of a tensor go: a float64 [9], subnormals and zeros of 16-bit tensors only."""


def down(
    x: Tensor, lora_A: Sequence[Tensor], factors: Sequence[float], seed: Tensor | None, p: float, widen: bool = True
) -> tuple[Tensor, Tensor]:
    """H [M, sum of r_i] for A_i [r_i, C], and X, in fp32 if `widen`."""
    if not cpu.AVAILABLE:
        x32 = x.float()
        stacked = torch.cat([a * factor for a, factor in zip(lora_A, factors, strict=True)])
        return _dropped(x32, seed, p) @ stacked.t(), x32 if widen else x
    wide = x if x.dtype == torch.float32 or not widen else torch.empty_like(x, dtype=torch.float32)
    to = lora_A[0].new_empty(x.shape[0], sum([a.shape[0] for a in lora_A]))
    right = cpu.Stack([a.contiguous() for a in lora_A], factors=factors)
    cpu.read(x, projection=(right, to), wide=wide, dropout=_dropout(seed, p))
    return to, wide


def da(
    g: Tensor, x: Tensor, ranks: Sequence[int], seed: Tensor | None, p: float, into: Sequence[Row | None]
) -> list[Tensor]:
    """dA_i [r_i, C] for a contiguous G [M, sum of r_i]. A row is that of a dA_i."""
    if cpu.AVAILABLE:
        found = [g.new_empty(rank, x.shape[1]) for rank in ranks]
        cpu.read(x, outer=(g, cpu.Stack(found, rows=into)), dropout=_dropout(seed, p))
        return found
    found = [part.clone() for part in (g.t() @ _dropped(x.float(), seed, p)).split(list(ranks))]
    for part, row in zip(found, into, strict=True):
        if row is not None:
            _write_of_gradient(row, part)
    return found


def grad(
    dy: Tensor,
    h: Tensor,
    b: Tensor,
    factor: float,
    g: Tensor,
    row: Row | None,
    db_row: Row | None,
    widen: bool = True,
) -> tuple[Tensor, Tensor, bool]:
    """dY, in fp32 if `widen`, dB [C, r], and whether H is finite, for a contiguous dY [M, C] and H [M, r]; G = f dY B
    is written to `g` [M, r], a slice of columns.
    """
    if cpu.AVAILABLE:
        wide = dy if dy.dtype == torch.float32 or not widen else torch.empty_like(dy, dtype=torch.float32)
        db = torch.empty_like(b, memory_format=torch.contiguous_format)
        right, into = cpu.Stack((b.contiguous(),), True, (factor,)), cpu.Stack((db,), True, None, (db_row,))
        finite = cpu.read(dy, projection=(right, g), outer=(h, into), wide=wide, row=row)
        return wide, db, finite
    wide = dy.float()
    torch.mul(wide @ b, factor, out=g)
    db = (h.t() @ wide).t().contiguous()  # faster than dY^T H
    if row is not None:
        row[:] = tensor_stats_cpu(dy, False).numpy()
    if db_row is not None:
        _write_of_gradient(db_row, db)
    # in one pass: the sum of fp32 values cannot overflow in double
    return wide if widen else dy, db, math.isfinite(float(h.sum(dtype=torch.float64)))


def up(
    acc: Tensor,
    h: Tensor,
    right: Sequence[Tensor],
    dtype: torch.dtype,
    row: Row | None,
    *,
    across: bool = False,
    seed: Tensor | None = None,
    p: float = 0.0,
) -> Tensor:
    """ACC + dropout'(H R) in `dtype`; a contiguous fp32 ACC is written over. R is made of [r_i, C], or if `across` of
    [C, r_i]. The row is that of the result, with overflow and underflow: 0 in fp32, where nobody rounded.
    """
    if cpu.AVAILABLE:
        stored = acc if dtype == torch.float32 else torch.empty_like(acc, dtype=dtype)
        stack = cpu.Stack([matrix.contiguous() for matrix in right], across)
        cpu.update(acc, h, stack, stored, row=row, dropout=_dropout(seed, p))
    else:
        r = torch.cat([matrix.t() for matrix in right] if across else list(right))
        acc = acc.addmm_(h, r) if p == 0 else acc.add_(_drop_(h @ r, seed, p))
        if row is None:
            return acc.to(dtype)
        stored, found = round_with_stats_cpu(acc, dtype, full=False)
        row[:] = found.numpy()
    if row is not None and dtype == torch.float32:
        row[N_OVERFLOW : N_OVERFLOW + 2] = 0
    return stored


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
    assert seed is not None
    x.view(-1).index_fill_(0, dropped_indices(x.numel(), seed, p), 0.0)
    return x


def _dropped(x: Tensor, seed: Tensor | None, p: float) -> Tensor:
    """A contiguous fp32 `x` with dropped elements set to zero; `x` itself if p = 0."""
    return _drop_(x.clone(), seed, p) if p > 0 else x


def _dropout(seed: Tensor | None, p: float) -> tuple[int, float]:
    assert seed is not None or p == 0
    return (0, 0.0) if seed is None else (int(seed), p)


def _write_of_gradient(row: Row, x: Tensor) -> None:
    """Writes the statistics of a contiguous fp32 tensor, which nobody rounded."""
    row[:] = tensor_stats_cpu(x, False).numpy()
    row[N_OVERFLOW : N_OVERFLOW + 2] = 0
