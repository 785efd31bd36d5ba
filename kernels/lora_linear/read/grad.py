"""The Triton kernel that reads every dY_i, and the one that reads X, for G and the gradients: `grad` of kernels.py.

Where it is known which rows are of which example, splits are the spans of spans.py, and what is added up in registers
is cut where an example ends, whether or not anybody asks for its squares, so that asking changes no bit. An example
that a span has whole leaves one number, its square; one that several spans have parts of is squared where these are
added (totals.py).

    DOWN     r_i is [c_i, k_i], outer_i [c_i, k_i] lie one behind the other in each split, and down[strip] is [M, k0 +
             k1 + ...], of which a projection's programs write its own ranks
    else     there is one z, and outer is [k0 + k1 + ..., c0] in each split
    STATS    those of z, followed from `first_bad` on by the non-finite counts of l
    CUT      no tile has rows of two examples; squares, fp64, has a region of each gradient, [examples, its strips,
             chunks], where those of examples in parts are not written
"""

import triton.language as tl

from ...backend import jit
from ...dropout import kept
from ...statistics.reduce import FIELDS, N_PARTIALS
from ...statistics.tile_stats import write_partials
from ...statistics.tile_sums import add_tile, matrix_partials, start_sums
from ..kernels import has_non_finite, operand
from ..projections import nth, outer_place, projection
from .spans import SPAN_COLUMNS
from .squares import write_squares

_N_PARTIALS = tl.constexpr(N_PARTIALS)
_N_NAN = tl.constexpr(FIELDS.index("n_nan"))
_N_INF = tl.constexpr(FIELDS.index("n_inf"))
_SPAN_COLUMNS = tl.constexpr(SPAN_COLUMNS)
_NOBODY = tl.constexpr(-(1 << 30))


@jit
def _store(outer, outer_ptr, cols, ranks, n_cols, rank, mask, DOWN: tl.constexpr):
    if DOWN:
        pointers = outer_ptr + (cols[:, None] * rank + ranks[None, :])
    else:
        pointers = outer_ptr + (ranks[None, :] * n_cols + cols[:, None])
    tl.store(pointers, outer, mask=mask)


@jit
def _bad(partials_ptr, first_bad, index, suspect, l_ptr, offsets, l_first, rank_mask, first, last, row_stride):
    """Non-finite values of l in some rows, looked for only if `suspect`: NaN and infinity times anything are not
    finite, times 0 neither.
    """
    BLOCK_M: tl.constexpr = offsets.shape[0]
    l_nan = tl.zeros((BLOCK_M,), dtype=tl.int32)
    l_inf = tl.zeros((BLOCK_M,), dtype=tl.int32)
    if suspect:
        for start in range(first, last, BLOCK_M):
            left_mask = (tl.arange(0, BLOCK_M) < last - start)[:, None] & rank_mask[None, :]
            left = tl.load(l_ptr + (start * row_stride + l_first) + offsets, mask=left_mask, other=0.0)
            l_nan += tl.sum((left != left).to(tl.int32), axis=1)
            l_inf += tl.sum((tl.abs(left) == float("inf")).to(tl.int32), axis=1)
    split = tl.program_id(1).to(tl.int64)
    program = first_bad + (index * tl.num_programs(1) + split) * tl.num_programs(2) + tl.program_id(2)
    tl.store(partials_ptr + program * _N_PARTIALS + _N_NAN, tl.sum(l_nan).to(tl.float64))
    tl.store(partials_ptr + program * _N_PARTIALS + _N_INF, tl.sum(l_inf).to(tl.float64))


@jit
def _span(spans_ptr, n_rows, rows_per_split, n_examples, CUT: tl.constexpr, BLOCK_M: tl.constexpr):
    """Of this split: first row, last + 1, tiles; and if CUT how many examples, where they end, and the first of them,
    or less than 0: of a part, and if nobody asks.
    """
    split = tl.program_id(1).to(tl.int64)
    if CUT:
        ends_ptr = spans_ptr + tl.num_programs(1) * _SPAN_COLUMNS
        spans_ptr += split * _SPAN_COLUMNS
        first, last = tl.load(spans_ptr), tl.load(spans_ptr + 1)
        n_tiles, n_ends, example = tl.load(spans_ptr + 2), tl.load(spans_ptr + 3), tl.load(spans_ptr + 5)
        return (
            first,
            last,
            n_tiles,
            n_ends,
            ends_ptr + tl.load(spans_ptr + 4),
            tl.where(n_examples > 0, example, _NOBODY),
        )
    else:
        first = split * rows_per_split
        last = tl.minimum(first + rows_per_split, n_rows)
        return first, last, tl.cdiv(last - first, BLOCK_M), 1, spans_ptr, -1


@jit
def _with_piece(
    outer, piece, scale, example, squares_ptr, n_examples, strip, own_strip, n_strips, k0, k1, k2, k3,
    GROUP: tl.constexpr,
):  # fmt: skip
    """Writes the square of a piece that is all of an example, and adds it to outer."""
    if example >= 0:
        chunks = tl.num_programs(2)
        before = (strip - own_strip) * n_examples + example * n_strips + own_strip
        size = n_strips * chunks * n_examples
        write_squares(piece, scale, squares_ptr + before * chunks + tl.program_id(2), size, k0, k1, k2, k3, GROUP)
    return outer + piece


@jit
def _outer_of(index, n_cols, rank, c0, k0, c1, k1, c2, k2, c3, k3, GROUP: tl.constexpr, DOWN: tl.constexpr):
    """The rank of a program's outer, where it begins, and how many values a split has."""
    if DOWN:
        first, size = outer_place(index, c0, k0, c1, k1, c2, k2, c3, k3, GROUP)
    else:
        for i in tl.static_range(1, GROUP):  # type: ignore[reportGeneralTypeIssues]
            rank += nth(i, k0, k1, k2, k3)
        first, size = tl.full((), 0, tl.int64), n_cols * rank
    return rank, first, size


@jit
def _write_statistics(
    outer, sums, n_tiles, z_ptr, l_ptr, partials_ptr, first_bad, strip, own_strip, chunk, index,
    first, last, n_cols, l_offsets, l_first, rank_mask, l_row_stride,
    COUNT_SMALL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    suspect = has_non_finite(outer)
    if own_strip == 0:
        _bad(
            partials_ptr, first_bad, index, suspect, l_ptr, l_offsets, l_first, rank_mask, first, last, l_row_stride
        )  # fmt: skip
    if chunk == 0:
        first_col, last_col = own_strip * BLOCK_C, tl.minimum((own_strip + 1) * BLOCK_C, n_cols)
        total = matrix_partials(
            sums, n_tiles, z_ptr, first, last, first_col, last_col, n_cols, False, COUNT_SMALL, BLOCK_M, BLOCK_C
        )
        program = tl.cast(strip, tl.int64) * tl.num_programs(1) + tl.program_id(1)
        write_partials(partials_ptr, program, total)


@jit(do_not_specialize=["n_rows", "rows_per_split", "first_bad", "n_examples"])
def _grad_kernel(
    z0_ptr, z1_ptr, z2_ptr, z3_ptr, r0_ptr, r1_ptr, r2_ptr, r3_ptr, l_ptr, down_ptr, outer_ptr, seed_ptr, partials_ptr,
    spans_ptr, squares_ptr, c0, c1, c2, c3, k0, k1, k2, k3, l_row_stride,
    n_rows, rows_per_split, first_bad, n_examples, s0, s1, s2, s3, p,
    GROUP: tl.constexpr, DROPOUT: tl.constexpr, DOWN: tl.constexpr, STATS: tl.constexpr, COUNT_SMALL: tl.constexpr,
    CUT: tl.constexpr, PRECISION: tl.constexpr, RANK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Reads every z_i [M, c_i] once, a strip of BLOCK_C columns and some rows per program: outer_i[split] = s_i z_i^T
    l_i stays in registers, down[strip of i] = s_i z_i r_i leaves with every tile. More is above.
    """
    strip, split, chunk = tl.program_id(0).to(tl.int32), tl.program_id(1).to(tl.int64), tl.program_id(2)
    index, own_strip, z_ptr, r_ptr, n_cols, rank, scale, l_first = projection(
        strip, BLOCK_C, z0_ptr, z1_ptr, z2_ptr, z3_ptr, r0_ptr, r1_ptr, r2_ptr, r3_ptr,
        c0, c1, c2, c3, k0, k1, k2, k3, s0, s1, s2, s3, GROUP if DOWN else 1,
    )  # fmt: skip
    rank, outer_first, outer_size = _outer_of(index, n_cols, rank, c0, k0, c1, k1, c2, k2, c3, k3, GROUP, DOWN)
    n_rows = tl.cast(n_rows, tl.int64)
    cols, ranks = own_strip * BLOCK_C + tl.arange(0, BLOCK_C), chunk * RANK + tl.arange(0, RANK).to(tl.int64)
    col_mask, rank_mask = cols < n_cols, ranks < rank
    begin, last, n_tiles, n_ends, ends_ptr, example = _span(spans_ptr, n_rows, rows_per_split, n_examples, CUT, BLOCK_M)
    outer, sums, first = tl.zeros((BLOCK_C, RANK), dtype=tl.float32), start_sums(), begin
    right_mask = col_mask[:, None] & rank_mask[None, :]
    right_ptrs = r_ptr + cols[:, None] * rank + ranks[None, :]
    right = operand(tl.load(right_ptrs, mask=right_mask, other=0.0), PRECISION) if DOWN else None
    # offsets in a tile fit in 32 bits; what does not goes into the address of the tile
    in_tile = tl.arange(0, BLOCK_M)
    z_offsets = in_tile[:, None] * tl.cast(n_cols, tl.int32) + tl.arange(0, BLOCK_C)[None, :]
    l_offsets = in_tile[:, None] * l_row_stride + tl.arange(0, RANK)[None, :]
    strip_ptr, l_first = z_ptr + own_strip * BLOCK_C, l_first + chunk * RANK
    for own in range(n_ends):
        end = tl.load(ends_ptr + own) if CUT else last
        piece = tl.zeros_like(outer)
        for start in range(begin, end, BLOCK_M):
            row_mask = in_tile < end - start
            mask, left_mask = row_mask[:, None] & col_mask[None, :], row_mask[:, None] & rank_mask[None, :]
            row = tl.cast(start, tl.int64)
            at = strip_ptr + row * n_cols
            stored = tl.load(at + z_offsets, mask=mask, other=0.0, eviction_policy="evict_first")
            z, at = stored.to(tl.float32), l_ptr + (row * l_row_stride + l_first)
            left = tl.load(at + l_offsets, mask=left_mask, other=0.0)
            if DROPOUT:
                z = kept(z, seed_ptr, row + in_tile.to(tl.int64), own_strip * BLOCK_C, n_cols, p, BLOCK_M, BLOCK_C)
            piece = tl.dot(tl.trans(z), operand(left, PRECISION), piece, input_precision=PRECISION)
            if DOWN:  # after the other product: fewer operands are there beside both sums
                tile_ptr = down_ptr + ((own_strip * n_rows + row) * l_row_stride + l_first)
                down = tl.dot(z, right, input_precision=PRECISION) * scale
                tl.store(tile_ptr + l_offsets, down, mask=left_mask, eviction_policy="evict_last")
            if STATS:
                sums = add_tile(sums, stored, stored, False, COUNT_SMALL)
        outer = piece if not CUT else _with_piece(
            outer, piece, scale, example + own, squares_ptr, n_examples, strip, own_strip, tl.cdiv(n_cols, BLOCK_C),
            k0, k1, k2, k3, 1 if DOWN else GROUP,
        )  # fmt: skip
        begin = end
    _store(outer * scale, outer_ptr + split * outer_size + outer_first, cols, ranks, n_cols, rank, right_mask, DOWN)
    if STATS:
        _write_statistics(
            outer, sums, n_tiles, z_ptr, l_ptr, partials_ptr, first_bad, strip, own_strip, chunk, index,
            first, last, n_cols, l_offsets, l_first, rank_mask, l_row_stride, COUNT_SMALL, BLOCK_M, BLOCK_C,
        )  # fmt: skip
