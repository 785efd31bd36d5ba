"""The passes of a LoRA linear over a tall matrix on the CPU: compiled, else the same in ATen.

    down    H = dropout(X) A^T, and X in fp32 if asked
    up      Y += dropout'(H R), rounded, and the row of Y
    grad    G = dY R^T, dB = dY^T H, the row of dY, and dY in fp32 if asked
    da      dA = G^T dropout(X)

Everything is computed in fp32. 16-bit matrices are widened, and a result is rounded once. `row`, where not None, is a
float64 [9] of NumPy for the statistics (`tensor_stats.py`, subnormals and zeros of 16-bit tensors only). Dropout sets
values of X to zero by seed and position and leaves the factor 1 / (1 - p) to the caller; it is a hash in the compiled
loops and a list of indices drawn at random in ATen, so the two draw different masks.
"""

import math

import numpy
import torch
from torch import Tensor

from . import cpu
from .reduce import FIELDS
from .tensor_stats_aten import round_with_stats_cpu, tensor_stats_cpu

N_OVERFLOW = FIELDS.index("n_overflow")


def down(x: Tensor, right: Tensor, seed: Tensor | None, p: float, widen: bool = True) -> tuple[Tensor, Tensor]:
    """dropout(X) R^T [M, r] for R [r, C], and X, in fp32 if `widen`."""
    if not cpu.AVAILABLE:
        x32 = x.float()
        return _dropped(x32, seed, p) @ right.t(), x32 if widen else x
    wide = x if x.dtype == torch.float32 or not widen else torch.empty_like(x, dtype=torch.float32)
    to = right.new_empty(x.shape[0], right.shape[0])
    cpu.read(x, right=right.contiguous(), to=to, wide=wide, dropout=_dropout(seed, p))
    return to, wide


def da(g: Tensor, x: Tensor, seed: Tensor | None, p: float) -> Tensor:
    """G^T dropout(X) [r, C] for a contiguous G [M, r]."""
    if not cpu.AVAILABLE:
        return g.t() @ _dropped(x.float(), seed, p)
    out = g.new_empty(g.shape[1], x.shape[1])
    cpu.read(x, left=g, outer=out, dropout=_dropout(seed, p))
    return out


def grad(
    dy: Tensor, h: Tensor, right: Tensor, g: Tensor, row: numpy.ndarray | None, widen: bool = True
) -> tuple[Tensor, Tensor]:
    """dY, in fp32 if `widen`, and dY^T H [C, r] for a contiguous dY [M, C] and H [M, r]; dY R^T is written to `g`
    [M, r], a slice of columns. The row is that of dY.
    """
    if not cpu.AVAILABLE:
        if row is not None:
            row[:] = tensor_stats_cpu(dy, False).numpy()
        dy32 = dy.float()
        g.copy_(dy32 @ right.t())
        return dy32 if widen else dy, (h.t() @ dy32).t().contiguous()  # faster than dY^T H
    wide = dy if dy.dtype == torch.float32 or not widen else torch.empty_like(dy, dtype=torch.float32)
    out = h.new_empty(h.shape[1], dy.shape[1])
    cpu.read(dy, right=right.contiguous(), to=g, left=h, outer=out, wide=wide, row=row)
    return wide, out.t().contiguous()


def up(
    acc: Tensor,
    h: Tensor,
    right: Tensor,
    dtype: torch.dtype,
    row: numpy.ndarray | None,
    seed: Tensor | None = None,
    p: float = 0.0,
) -> Tensor:
    """ACC + dropout'(H R) in `dtype`, for R [r, C]; a contiguous fp32 ACC is written over. The row is that of the
    result, with overflow and underflow: 0 in fp32, where nobody rounded.
    """
    if cpu.AVAILABLE:
        stored = acc if dtype == torch.float32 else torch.empty_like(acc, dtype=dtype)
        cpu.update(acc, h, right.contiguous(), stored, row, _dropout(seed, p))
    else:
        acc = acc.addmm_(h, right) if p == 0 else acc.add_(_drop_(h @ right, seed, p))
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
