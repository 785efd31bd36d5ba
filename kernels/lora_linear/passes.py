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
from ..ledger import FLOAT, Ledger
from ..statistics.reduce import FIELDS
from ..statistics.tensor_stats_aten import round_with_stats_cpu, tensor_stats_cpu
from .group import NO_DROPOUT, Dropout, Examples, Factor

N_OVERFLOW = FIELDS.index("n_overflow")


Row = numpy.ndarray
"""Where the statistics of a tensor go: a float64 [9], subnormals and zeros of 16-bit tensors only."""


PIECES = 1 << 24
"""Values of dA_i,e or dB_i,e that are there at once where ATen computes them: 64 MiB."""

RUN, SHORTEST = 512, 16
"""Values whose squares are added in fp32, at most; of fewer nothing is saved."""

SMALLEST, LARGEST = 1e-28, 1e30
"""Sums of squares that fp32 holds: what its subnormals and its largest value do to them is below 1e-9."""

Cuts = tuple[Sequence[int], bool] | None
"""Where examples begin, and whether their squares are asked for; None where nobody knows."""


def down(
    x: Tensor, lora_A: Sequence[Tensor], factors: Sequence[float], dropout: Dropout, widen: bool = True
) -> tuple[Tensor, Tensor]:
    """H [M, sum of r_i] for A_i [r_i, C], and X, in fp32 if `widen`."""
    if not cpu.AVAILABLE:
        x32 = x.float()
        stacked = torch.cat([a * factor for a, factor in zip(lora_A, factors, strict=True)])
        return _dropped(x32, dropout) @ stacked.t(), x32 if widen else x
    wide = x if x.dtype == torch.float32 or not widen else torch.empty_like(x, dtype=torch.float32)
    to = lora_A[0].new_empty(x.shape[0], sum([a.shape[0] for a in lora_A]))
    right = cpu.Stack([a.contiguous() for a in lora_A], factors=factors)
    cpu.read(x, projection=(right, to), wide=wide, dropout=_drawn(dropout))
    return to, wide


def da(
    g: Tensor,
    x: Tensor,
    ranks: Sequence[int],
    dropout: Dropout,
    into: Sequence[Row | None],
    examples: Examples | None = None,
) -> list[Tensor]:
    """dA_i [r_i, C] for a contiguous G [M, sum of r_i]. A row is that of a dA_i; squares go to the first g columns."""
    if cpu.AVAILABLE:
        found = [g.new_empty(rank, x.shape[1]) for rank in ranks]
        squares = None if examples is None else examples.on_cpu(0)
        cpu.read(x, outer=(g, cpu.Stack(found, rows=into, examples=squares)), dropout=_drawn(dropout))
        return found
    found = [part.clone() for part in outer(g, _dropped(x.float(), dropout), ranks, examples, 0).split(list(ranks))]
    for part, row in zip(found, into, strict=True):
        if row is not None:
            _write_of_gradient(row, part)
    return found


def grad(
    dy: Tensor,
    h: Tensor,
    right: tuple[Tensor, float],
    g: Tensor,
    into: tuple[Row | None, Row | None, Examples | None, int],
    widen: bool = True,
) -> tuple[Tensor, Tensor, bool]:
    """dY, in fp32 if `widen`, dB [C, r], and whether H is finite, for a contiguous dY [M, C] and H [M, r]; G = f dY B,
    with B and f from `right`, is written to `g` [M, r], a slice of columns. `into` has the rows of dY and of dB, the
    examples, and the column of their squares.
    """
    (b, factor), (row, db_row, examples, column) = right, into
    if cpu.AVAILABLE:
        wide = dy if dy.dtype == torch.float32 or not widen else torch.empty_like(dy, dtype=torch.float32)
        db = torch.empty_like(b, memory_format=torch.contiguous_format)
        squares = None if examples is None else examples.on_cpu(column)
        rights, db_into = (
            cpu.Stack((b.contiguous(),), True, (factor,)),
            cpu.Stack((db,), True, None, (db_row,), squares),
        )
        finite = cpu.read(dy, projection=(rights, g), outer=(h, db_into), wide=wide, row=row)
        return wide, db, finite
    wide = dy.float()
    torch.mul(wide @ b, factor, out=g)
    db = outer(h, wide, [h.shape[1]], examples, column).t().contiguous()  # faster than dY^T H
    if row is not None:
        row[:] = tensor_stats_cpu(dy, False).numpy()
    if db_row is not None:
        _write_of_gradient(db_row, db)
    # in one pass: the sum of fp32 values cannot overflow in double
    return wide if widen else dy, db, math.isfinite(float(h.sum(dtype=torch.float64)))


def up(
    acc: Tensor, h: Tensor, right: Factor, dtype: torch.dtype, row: Row | None, dropout: Dropout = NO_DROPOUT
) -> Tensor:
    """ACC + dropout'(H R) in `dtype`; a contiguous fp32 ACC is written over. The row is that of the result, with
    overflow and underflow: 0 in fp32, where nobody rounded.
    """
    matrices, across = right
    if cpu.AVAILABLE:
        stored = acc if dtype == torch.float32 else torch.empty_like(acc, dtype=dtype)
        stack = cpu.Stack([matrix.contiguous() for matrix in matrices], across)
        cpu.update(acc, h, stack, stored, row=row, dropout=_drawn(dropout))
    else:
        r = torch.cat([matrix.t() for matrix in matrices] if across else list(matrices))
        acc = acc.addmm_(h, r) if dropout.p == 0 else acc.add_(_drop_(h @ r, dropout))
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
    return torch.randint(max(numel, 1), (n_drawn(numel, generator, p),), generator=generator)


def n_drawn(numel: int, generator: torch.Generator, p: float) -> int:
    """How many indices are drawn; it draws that number."""
    mean = torch.tensor(-math.log1p(-p) * numel, dtype=torch.float64)
    return int(torch.poisson(mean, generator=generator)) if numel else 0


def _drop_(x: Tensor, dropout: Dropout) -> Tensor:
    assert dropout.seed is not None
    x.view(-1).index_fill_(0, dropped_indices(x.numel(), dropout.seed, dropout.p), 0.0)
    return x


def _dropped(x: Tensor, dropout: Dropout) -> Tensor:
    """A contiguous fp32 `x` with dropped elements set to zero; `x` itself if p = 0."""
    return _drop_(x.clone(), dropout) if dropout.p > 0 else x


def _drawn(dropout: Dropout) -> tuple[int, float]:
    """As the compiled loops take it."""
    return (0, 0.0) if dropout.seed is None else (int(dropout.seed), dropout.p)


def _write_of_gradient(row: Row, x: Tensor) -> None:
    """Writes the statistics of a contiguous fp32 tensor, which nobody rounded."""
    row[:] = tensor_stats_cpu(x, False).numpy()
    row[N_OVERFLOW : N_OVERFLOW + 2] = 0


def outer(left: Tensor, x: Tensor, ranks: Sequence[int], examples: Examples | None, column: int) -> Tensor:
    """L^T X [sum of r_i, C] in ATen, for L [M, sum of r_i] and X [M, C] in fp32; squares of the parts of each r_i go to
    the columns from `column` on.
    """
    if examples is None:
        return left.t() @ x
    if examples.squares is not None:
        examples.squares[:, column : column + len(ranks)] = 0
    total = None
    for first, count, length in examples.runs():
        step = max(1, PIECES // (left.shape[1] * x.shape[1]))
        for e in range(first, first + count, step):
            n = min(step, first + count - e)
            tokens = slice(examples.starts[e], examples.starts[e] + n * length)
            pieces = left[tokens].view(n, length, -1).transpose(1, 2) @ x[tokens].view(n, length, -1)
            if examples.squares is not None:
                for i, own in enumerate(pieces.split(list(ranks), dim=1), start=column):
                    _write_squares(own, examples.squares[e : e + n, i])
            own = pieces[0] if n == 1 else pieces.sum(0)
            total = own if total is None else total.add_(own)
    return x.new_zeros(left.shape[1], x.shape[1]) if total is None else total


def _write_squares(own: Tensor, into: Tensor) -> None:
    """Writes |P_e|^2 of P [n, r, C] in fp32 to `into` [n] in double.

    Runs of values in fp32, their sums in double: within 1e-7, in a third of the time that widening every value takes.
    An example whose squares leave the range of fp32 is widened, and so is everything where no run fits.
    """
    run = _run(own.shape[1] * own.shape[2])
    if run < SHORTEST:
        torch.linalg.vector_norm(own, dim=(1, 2), dtype=torch.float64, out=into).square_()
        return
    norms = torch.linalg.vector_norm(own.flatten(1).unflatten(1, (-1, run)), dim=2)
    torch.sum(norms.double().square_(), 1, out=into)
    for e, total in enumerate(into.tolist()):
        if not SMALLEST < total < LARGEST and bool(own[e].any()):
            into[e] = torch.linalg.vector_norm(own[e], dtype=torch.float64).square_()


def _run(n: int) -> int:
    """How many of n values are added in fp32 at once."""
    return math.gcd(n, RUN)


def outer_scratch(ledger: Ledger, ranks: Sequence[int], cols: int, examples: Cuts) -> int:
    """Bytes of L^T X, beside them."""
    n_bytes = FLOAT * sum(ranks) * cols
    if examples is None:
        return ledger.take(n_bytes)
    starts, has_squares = examples
    step, total, old_pieces, old_own = max(1, PIECES // (sum(ranks) * cols)), 0, 0, 0
    for _, count, _ in Examples(starts).runs():
        for first in range(0, count, step):
            n = min(step, count - first)
            pieces = ledger.take(n * n_bytes)
            ledger.give(old_pieces)
            if has_squares:  # what `own` was is gone with the first of its parts
                ledger.give(old_own)
                old_own = 0
            for rank in ranks if has_squares else ():
                run = _run(rank * cols)  # norms of runs in fp32 and in double, or every value in double
                ledger.within(8 * n * rank * cols if run < SHORTEST else 12 * n * (rank * cols // run))
            own = ledger.take(n_bytes) if n > 1 else 0
            ledger.give(old_own)
            # the first sum is the total from then on; that of one example is its piece
            old_pieces, old_own = (pieces, own) if total else (pieces if n > 1 else 0, 0)
            total = n_bytes
    ledger.give(old_pieces, old_own)
    return total or ledger.take(n_bytes)
