"""Launches of the pass of backward over every dY, of that over X, and of the sums of what they leave in parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...backend import cdiv, n_multiprocessors
from ...launcher import launch
from ...statistics.pending_rows import Partials, PendingRows, regions, room
from .. import totals
from ..group import NO_DROPOUT, Dropout, Examples
from ..projections import four
from ..shapes import Read, gradients_shape, read_shape
from ..tiles import GRADIENT_ALIGN, TOTAL_BLOCK, precision
from . import grad as kernels
from .spans import Spans, cut, table_on

DOUBLE = 8


class Sides(NamedTuple):
    """What stands beside the z_i of a pass, up to four projections.

    Attributes:
        left: fp32 [M, sum of k_i]; contiguous if there are rights.
        rights: [c_i, k_i], contiguous; None: there is one z, and no `down`.
        ranks: k_i.
        scales: of each z_i.
    """

    left: Tensor
    rights: Sequence[Tensor] | None
    ranks: tuple[int, ...]
    scales: Sequence[float]


class Pieces(NamedTuple):
    """What the sums of the examples leave of a pass.

    Attributes:
        table: of `spans`, on the device.
        squares: float64 [sum of n_squares, E]; where nobody asked the table stands for it.
        whole: where each gradient's squares of examples that were not cut are; none if nobody asked.
    """

    spans: Spans
    table: Tensor
    squares: Tensor
    whole: list[Partials]

    @property
    def numbers(self) -> Partials:
        """Which of the examples that were cut each is."""
        return Partials(self.table, self.table.data_ptr() + 4 * self.spans.numbers_at, 0)


class Passed(NamedTuple):
    """What a pass leaves.

    Attributes:
        outer: fp32 [splits, sum of c_i k_i], s_i z_i^T l_i in parts.
        sites: partials of each z_i.
        bad: partials with the non-finite counts of each l_i.
        pieces: None where examples are not known.
        down: fp32 [strips, M, sum of k_i], s_i z_i r_i in parts, or None.
    """

    outer: Tensor
    sites: list[Partials]
    bad: list[Partials]
    pieces: Pieces | None
    down: Tensor | None


def starts_of(examples: Examples, n_rows: int) -> tuple[int, ...]:
    """Where the examples of so many rows begin.

    Raises:
        ValueError: they are not of so many.
    """
    starts = tuple(examples.starts)
    if not starts or starts[-1] != n_rows:
        raise ValueError(f"starts do not go from 0 to the rows of x, {n_rows}: {list(starts)[-8:]}")
    return starts


def _pieces(starts: tuple[int, ...], shape: Read, like: Tensor, wanted: bool) -> Pieces:
    how = starts, shape.tile.block_m, shape.wanted
    table, n = table_on(like.device, *how), len(starts) - 1
    squares, whole = table, []
    if wanted:
        squares = like.new_empty((sum(shape.n_squares), n), dtype=torch.float64)
        address = squares.data_ptr()
        for count in shape.n_squares:
            whole.append(Partials(squares, address, count))
            address += DOUBLE * count * n
    return Pieces(cut(*how), table, squares, whole)


def read(
    zs: Sequence[Tensor], sides: Sides, dropout: Dropout, with_stats: bool, examples: Examples | None = None
) -> Passed:
    """One pass over every z_i [M, c_i], contiguous."""
    (left, rights, ranks, scales), z, n_rows, (seed, p) = sides, zs[0], zs[0].shape[0], dropout
    cols, kernel = tuple([z.shape[1] for z in zs]), "dA" if rights is None else "grad"
    rows = n_rows if examples is None else starts_of(examples, n_rows)
    shape = read_shape(kernel, cols, ranks, precision(z), n_multiprocessors(z.device), rows)
    tile = shape.tile
    outer = left.new_empty((shape.splits, shape.n_outer))
    down = None if rights is None else left.new_empty((shape.n_strips, n_rows, sum(ranks)))
    n_found = shape.grid[0] * shape.splits
    row_stride = left.stride(0) if n_rows > 1 else left.shape[1]  # one row of a slice counts as contiguous
    found = room(left, n_found + shape.n_left * len(zs), with_stats)
    pieces, table, squares, n_squared = None, outer, outer, 0
    if not isinstance(rows, int):
        assert examples is not None
        pieces = _pieces(rows, shape, outer, examples.squares is not None)
        table, squares, n_squared = pieces.table, pieces.squares, (len(rows) - 1) * bool(pieces.whole)
    launch(
        kernels._grad_kernel, shape.grid,
        (*four(zs), *four(zs if rights is None else rights), left, outer if down is None else down, outer,
         z if seed is None else seed, found, table, squares),
        (*shape.sizes, row_stride), (n_rows, shape.length, n_found, n_squared, *four(scales), p),
        (len(ranks), p > 0, rights is not None, with_stats, z.dtype != torch.float32, pieces is not None, precision(z),
         shape.padded, tile.block_m, tile.block_c),
        num_warps=tile.num_warps, num_stages=tile.num_stages, enable_fp_fusion=False, maxnreg=tile.registers,
    )  # fmt: skip
    bad = regions(found, [shape.n_left] * len(zs), with_stats, n_found)
    return Passed(outer, regions(found, shape.n_programs, with_stats), bad, pieces, down)


def grad(
    grads: Sequence[Tensor], sides: Sides, g: Tensor, with_stats: bool, examples: Examples | None = None
) -> Passed:
    """The pass over every dY_i. Writes G to `g` [M, sum of ranks], a slice of columns."""
    found = read(grads, sides, NO_DROPOUT, with_stats, examples)
    cols = tuple([dy.shape[1] for dy in grads])
    shape = read_shape("grad", cols, sides.ranks, precision(grads[0]), n_multiprocessors(g.device), 1)
    assert found.down is not None
    total_down(found.down, g, cols, sides.ranks, shape.tile.block_c)
    return found._replace(down=None)


def total_down(parts: Tensor, out: Tensor, cols: Sequence[int], ranks: Sequence[int], strip: int) -> None:
    """Writes the sums of parts [strips, M, sum of ranks] to `out` [M, sum of ranks], a slice of columns."""
    _, n_rows, width = parts.shape
    launch(
        totals._total_down_kernel, (max(1, cdiv(n_rows * width, TOTAL_BLOCK)), 1, 1), (parts, out),
        (*four(cols), *four(ranks), width, out.stride(0)), (n_rows,), (len(cols), strip, TOTAL_BLOCK),
        num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip


class Gradients(NamedTuple):
    """Every dA and then every dB of up to four projections.

    Attributes:
        sites: partials of each.
        cut: where each one's squares of examples that were cut are; none if nobody asked.
    """

    values: list[Tensor]
    sites: list[Partials]
    cut: list[Partials]


def total_gradients(
    da: Passed, db: Passed, lora_A: Sequence[Tensor], lora_B: Sequence[Tensor], with_stats: bool
) -> Gradients:
    """The sums of what the passes left in parts."""
    shapes = tuple([tensor.shape for tensor in (*lora_A, *lora_B)])
    shape = gradients_shape(shapes)
    n_blocks = sum(shape.n_programs)
    out = da.outer.new_empty(shape.n)
    found = room(out, n_blocks, with_stats)
    both = [own.pieces for own in (da, db) if own.pieces is not None]
    a_table, b_table = [own.table for own in both] or (out, out)
    squares, cuts, wanted = out, [], bool(both and both[0].whole)
    n_cut = max([own.spans.n_cut for own in both]) if wanted else 0
    if n_cut:
        squares = out.new_empty(n_cut * n_blocks, dtype=torch.float64)
    if wanted:
        address = squares.data_ptr()
        for count in shape.n_programs:
            cuts.append(Partials(squares, address, count if n_cut else 0))
            address += DOUBLE * count * n_cut
    launch(
        totals._total_gradients_kernel, (n_blocks, 1, 1),
        (da.outer, db.outer, out, found, a_table, b_table, squares), shape.sizes,
        (da.outer.shape[0], db.outer.shape[0], n_cut),
        (len(lora_A), with_stats, bool(both), shape.aligned, TOTAL_BLOCK, GRADIENT_ALIGN),
        num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    gradients = [out.as_strided(size, (size[1], 1), place) for size, place in zip(shapes, shape.places, strict=True)]
    return Gradients(gradients, regions(found, shape.n_programs, with_stats), cuts)


def add_squares(
    pending: PendingRows, place: tuple[Tensor, int], pieces: tuple[Pieces, Pieces], cut: Sequence[Partials]
) -> None:
    """Squares of some of a group's projections for the next flush.

    Args:
        place: float64 [E, 2 g] or one column more (group.py), those of every dA and then of every dB; and the first of
            the projections.
        pieces: of dA and of dB.
        cut: of both, one behind the other.
    """
    into, first = place
    for side, own in enumerate(pieces):
        for i, whole in enumerate(own.whole):
            column = side * (into.shape[1] // 2) + first + i
            pending.add_squares(into, column, whole, cut[side * len(own.whole) + i], own.numbers)
