"""The rank products of a LoRA linear by cuBLAS, in fp32: for sm_75, where Triton has no tensor cores.

By blocks of rows, so that no whole activation ever exists in fp32. Functions and their results are those of the same
name in launch.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..backend import cdiv
from ..launcher import launch
from ..ledger import FLOAT, Ledger
from ..statistics.pending_rows import PARTIAL_BYTES, Partials, regions, room
from ..statistics.reduce import FIELDS, N_PARTIALS
from . import kernels
from .group import NO_DROPOUT, Dropout, Factor, Group
from .passes import outer
from .projections import four
from .read.launches import Sides
from .tiles import ADD_TILE, WIDEN_TILE, Tile

BLOCK = 1 << 22
"""Values of an fp32 block: 16 MiB."""


def _row_blocks(x: Tensor) -> Iterator[slice]:
    step = max(1, BLOCK // x.shape[1])
    return (slice(start, start + step) for start in range(0, max(x.shape[0], 1), step))


def _joined(found: list[Tensor], nothing: Tensor) -> Tensor:
    """Partials of all blocks of rows; without statistics there are none."""
    return torch.cat(found) if len(found) > 1 else found[0] if found else nothing


def down(x: Tensor, a: Tensor, dropout: Dropout, with_stats: bool) -> tuple[Tensor, Tensor]:
    h, found = x.new_empty((x.shape[0], a.shape[0]), dtype=torch.float32), []
    for rows in _row_blocks(x):
        x32, partials = widen(x[rows], rows.start, dropout, with_stats)
        found += [partials] if with_stats else []  # else it is the block itself
        torch.mm(x32, a.t(), out=h[rows])
    return h[None], _joined(found, h)


def up(
    zs: Sequence[Tensor], left: Tensor, right: Factor, scales: Sequence[float], dropout: Dropout, with_stats: bool
) -> list[Partials]:
    sites, first = [], 0
    for z, matrix, scale in zip(zs, right.matrices, scales, strict=True):
        matrix = matrix.t() if right.across else matrix
        own = left[:, first : first + matrix.shape[0]]
        first += matrix.shape[0]
        found = []
        for rows in _row_blocks(z):
            partials = _add(z[rows], own[rows] @ matrix, rows.start, scale, dropout, with_stats)
            found += [partials] if with_stats else []
        if with_stats:
            joined = _joined(found, z)
            sites += regions(joined, [joined.shape[0]], True)
    return sites


def _add(z: Tensor, delta: Tensor, first_row: int, scale: float, dropout: Dropout, with_stats: bool) -> Tensor:
    """z += scale keep(delta); partials of z."""
    (n_rows, n_cols), (seed, p) = z.shape, dropout
    tile = ADD_TILE
    grid = (max(1, cdiv(n_rows, tile.block_m)), cdiv(n_cols, tile.block_c))
    found = room(delta, grid[0] * grid[1], with_stats)
    is_wide = z.dtype == torch.float32
    launch(
        kernels._up_kernel, (*grid, 1),
        (*four([z]), *four([delta]), delta, delta, delta, z if seed is None else seed, found),
        (*four([n_cols]), *four([1]), 1), (n_rows, 1, first_row, 1, *four([scale]), p),
        (1, False, False, p > 0, with_stats, is_wide, not is_wide, "tf32", 0, tile.block_m, tile.block_c),
        num_warps=tile.num_warps, num_stages=tile.num_stages, enable_fp_fusion=False,
    )  # fmt: skip
    return found


def grad(
    grads: Sequence[Tensor], sides: Sides, g: Tensor, with_stats: bool
) -> tuple[Tensor, list[Partials], list[Partials]]:
    """Writes G to `g`; dB in one part, partials of every dY, in one buffer, and of every H."""
    h, right, _, scales = sides
    assert right is not None
    outer = h.new_zeros((1, sum(b.numel() for b in right)))
    found, counts, bad, first, at = [], [], [], 0, 0
    for dy, b, scale in zip(grads, right, scales, strict=True):
        columns = slice(first, first + b.shape[1])
        first = columns.stop
        db = outer[0, at : at + b.numel()].view(b.shape)
        at += b.numel()
        counts.append(0)
        for rows in _row_blocks(dy):
            dy32, partials = widen(dy[rows], rows.start, NO_DROPOUT, with_stats)
            found += [partials] if with_stats else []
            counts[-1] += partials.shape[0] if with_stats else 0
            g[rows, columns] = dy32 @ (b * scale)
            db.addmm_(dy32.t(), h[rows, columns], alpha=scale)
        if with_stats:
            bad += regions(_bad(h[:, columns]), [1], True)
    return outer, regions(_joined(found, h), counts, with_stats), bad


def _bad(h: Tensor) -> Tensor:
    """Non-finite values of H, where n_inf is; which of them are NaN nobody asks."""
    row = h.new_zeros((1, N_PARTIALS), dtype=torch.float64)
    row[0, FIELDS.index("n_inf")] = h.isfinite().logical_not().sum()
    return row


def da(x: Tensor, g: Tensor, dropout: Dropout) -> Tensor:
    parts = g.new_zeros((1, g.shape[1] * x.shape[1]))
    product = parts[0].view(g.shape[1], x.shape[1])
    for rows in _row_blocks(x):
        product.addmm_(g[rows].t(), widen(x[rows], rows.start, dropout, False)[0])
    return parts


def squares(grads: Sequence[Tensor], x: Tensor, factors: tuple[Tensor, Tensor], group: Group) -> None:
    """Squares of every example's dA_i and dB_i, by products of their own, from H and G."""
    (h, g), examples, ranks = factors, group.examples, [a.shape[0] for a in group.lora_A]
    assert examples is not None
    assert examples.squares is not None
    outer(g, widen(x, 0, group.dropout, False)[0], ranks, examples, 0)
    for i, (dy, own_h, scale) in enumerate(zip(grads, h.split(ranks, dim=1), group.factors, strict=True)):
        outer(own_h * scale, dy.float(), [ranks[i]], examples, len(ranks) + i)


def widen(z: Tensor, first_row: int, dropout: Dropout, with_stats: bool) -> tuple[Tensor, Tensor]:
    """keep(z) in fp32, and partials of z."""
    (n_rows, n_cols), (seed, p) = z.shape, dropout
    tile = WIDEN_TILE
    grid = (max(1, cdiv(n_rows, tile.block_m)), cdiv(n_cols, tile.block_c))
    out = z.new_empty((n_rows, n_cols), dtype=torch.float32)
    found = room(out, grid[0] * grid[1], with_stats)
    launch(
        kernels._widen_kernel, (*grid, 1), (z, out, z if seed is None else seed, found), (n_cols,),
        (n_rows, first_row, p), (p > 0, with_stats, z.dtype != torch.float32, tile.block_m, tile.block_c),
        num_warps=tile.num_warps, enable_fp_fusion=False,
    )  # fmt: skip
    return out, found


def _blocks(m: int, n_cols: int) -> Iterator[int]:
    """Rows of each block."""
    step = max(1, BLOCK // n_cols)
    return (min(step, m - start) for start in range(0, max(m, 1), step))


def _partials(n_rows: int, n_cols: int, tile: Tile, with_stats: bool) -> int:
    programs = max(1, cdiv(n_rows, tile.block_m)) * cdiv(n_cols, tile.block_c)
    return PARTIAL_BYTES * programs if with_stats else 0


def _wait_joined(ledger: Ledger, found: list[int]) -> None:
    """Partials of each block, which are there, and of all together, which wait."""
    if len(found) > 1:
        ledger.wait(sum(found))
        ledger.give(*found)
    else:
        ledger.kept += sum(found)
        ledger.waits += sum(found)


def down_scratch(ledger: Ledger, m: int, n_cols: int, with_stats: bool) -> None:
    """Beside H; of the blocks in fp32 two are there at once, for one lives until the next is made."""
    old, found = 0, []
    for rows in _blocks(m, n_cols):
        new = ledger.take(FLOAT * rows * n_cols)
        found.append(ledger.take(_partials(rows, n_cols, WIDEN_TILE, with_stats)))
        ledger.give(old)
        old = new
    _wait_joined(ledger, found)
    ledger.give(old)


def up_scratch(ledger: Ledger, m: int, cols: Sequence[int], with_stats: bool) -> None:
    """Products of l and r, and partials."""
    old = 0
    for n_cols in cols:
        found = []
        for rows in _blocks(m, n_cols):
            new = ledger.take(FLOAT * rows * n_cols)
            found.append(ledger.take(_partials(rows, n_cols, ADD_TILE, with_stats)))
            ledger.give(old, new if with_stats else 0)
            old = 0 if with_stats else new
        _wait_joined(ledger, found)
    ledger.give(old)


def grad_scratch(
    ledger: Ledger, m: int, cols: Sequence[int], ranks: Sequence[int], with_stats: bool
) -> tuple[int, int]:  # fmt: skip
    """Bytes of dB, and partials of every dY."""
    outer, found, old = ledger.take(FLOAT * sum(n * rank for n, rank in zip(cols, ranks, strict=True))), [], 0
    for n_cols, rank in zip(cols, ranks, strict=True):
        for rows in _blocks(m, n_cols):
            new = ledger.take(FLOAT * rows * n_cols)
            found.append(ledger.take(_partials(rows, n_cols, WIDEN_TILE, with_stats)))
            ledger.give(old)
            old = new
            scaled = ledger.beside_number(FLOAT * n_cols * rank, torch.float32)
            ledger.within(FLOAT * rows * rank)
            ledger.give(scaled)
        if with_stats:
            ledger.wait(PARTIAL_BYTES)
            ledger.within((FLOAT + 3) * m * rank)  # which are not finite
            ledger.take(m * rank)
            ledger.total(m * rank, copied=8 * m * rank)  # on a GPU no copy is made
            ledger.give(m * rank)
    _wait_joined(ledger, found)
    ledger.give(old)
    return outer, sum(found) // PARTIAL_BYTES


def da_scratch(ledger: Ledger, m: int, n_cols: int) -> None:
    """Beside dA."""
    for rows in _blocks(m, n_cols):
        ledger.within(FLOAT * rows * n_cols)
