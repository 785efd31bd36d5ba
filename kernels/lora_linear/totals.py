"""Sums of what the programs of a LoRA linear's kernels left in parts, in a fixed order: G, and every dA and dB.

What they belong to is in kernels.py. Where it is known which part is of which example, the parts of one that was cut
are added first, and squared (read/spans.py).
"""

import triton.language as tl

from ..backend import jit
from ..statistics.tile_stats import write_partials
from ..statistics.tile_sums import only_tile_partials
from .projections import nth, of_projection
from .read.spans import CONTINUES, GOES_ON, PART, SPAN_COLUMNS
from .read.squares import square

_PART, _SPAN_COLUMNS = tl.constexpr(PART), tl.constexpr(SPAN_COLUMNS)
_GOES_ON, _CONTINUES = tl.constexpr(GOES_ON), tl.constexpr(CONTINUES)


@jit(do_not_specialize=["n_rows"])
def _total_down_kernel(
    parts_ptr, out_ptr, c0, c1, c2, c3, k0, k1, k2, k3, width, out_stride, n_rows,
    GROUP: tl.constexpr, STRIP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out [M, width] = sum over the strips of parts [strips, M, width], in order; each projection has its own."""
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    size = tl.cast(n_rows, tl.int64) * width
    mask = offsets < size
    column = offsets % width
    index = tl.zeros((BLOCK,), dtype=tl.int32)
    if GROUP > 1:
        index += (column >= k0).to(tl.int32)
    if GROUP > 2:
        index += (column >= k0 + k1).to(tl.int32)
    if GROUP > 3:
        index += (column >= k0 + k1 + k2).to(tl.int32)
    n_strips = tl.zeros((BLOCK,), dtype=tl.int32) + tl.cdiv(of_projection(index, c0, c1, c2, c3, GROUP), STRIP)
    most = tl.cdiv(c0, STRIP)
    if GROUP > 1:
        most = tl.maximum(most, tl.cdiv(c1, STRIP))
    if GROUP > 2:
        most = tl.maximum(most, tl.cdiv(c2, STRIP))
    if GROUP > 3:
        most = tl.maximum(most, tl.cdiv(c3, STRIP))
    acc = tl.zeros((BLOCK,), dtype=tl.float32)
    for strip in range(most):
        part = tl.load(parts_ptr + strip * size + offsets, mask=mask, other=0.0)
        acc += tl.where(strip < n_strips, part, 0.0)  # what nobody wrote is read, for a mask by column reads one by one
    tl.store(out_ptr + offsets // width * out_stride + column, acc, mask=mask)


@jit
def _take(at, value, block, first, n_blocks):
    return tl.where((block >= first) & (block < first + n_blocks), value, at)


@jit
def _sum_of_examples(parts_ptr, n_parts, size, offsets, mask, spans_ptr, squares_ptr, stride, wanted):
    """The sum of the parts of spans; the squares of examples that were cut go to squares, `stride` apart."""
    acc = tl.zeros(offsets.shape, dtype=tl.float32)
    piece = tl.zeros(offsets.shape, dtype=tl.float32)
    for part in range(n_parts):
        kind = tl.load(spans_ptr + part * _SPAN_COLUMNS + _PART)
        piece += tl.load(parts_ptr + part * size + offsets, mask=mask, other=0.0)
        is_end = (kind & _CONTINUES) == 0
        if is_end & ((kind & _GOES_ON) != 0) & wanted:
            tl.store(squares_ptr, square(piece))
            squares_ptr += stride
        acc += tl.where(is_end, piece, 0.0)
        piece = tl.where(is_end, 0.0, piece)
    return acc


@jit(do_not_specialize=["n_a_parts", "n_b_parts", "n_cut"])
def _total_gradients_kernel(
    a_parts_ptr, b_parts_ptr, out_ptr, partials_ptr, a_spans_ptr, b_spans_ptr, squares_ptr,
    n_in, c0, c1, c2, c3, k0, k1, k2, k3, n_a_parts, n_b_parts, n_cut,
    GROUP: tl.constexpr, STATS: tl.constexpr, CUT: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
    ALIGN: tl.constexpr,
):  # fmt: skip
    """dA_i [k_i, K] and dB_i [c_i, k_i] in a row, each = sum of its parts, in order, and begins at a multiple of ALIGN.

    a_parts [n_a_parts, k0 + k1 + ..., K], b_parts [n_b_parts, c0 k0 + c1 k1 + ...]. A program has a block of one of
    them; ALIGNED if every one of them is a multiple of four values.

    CUT: parts are those of the spans of a and of b. squares, fp64, has a region for each gradient, [n_cut, its blocks],
    for the examples that were cut, in order; n_cut 0: nobody wants them.
    """
    block = tl.program_id(0).to(tl.int64)
    zero = tl.full((), 0, tl.int64)
    n_in = tl.cast(n_in, tl.int64)
    first_block, out_at = zero, zero
    is_b, own_first, own_n, own_out, own_part = tl.full((), False, tl.int1), zero, zero, zero, zero
    a_size, b_size = zero, zero
    for i in tl.static_range(2 * GROUP):  # type: ignore[reportGeneralTypeIssues]
        rank = tl.cast(nth(i % GROUP, k0, k1, k2, k3), tl.int64)
        if i < GROUP:
            n, part_at = rank * n_in, a_size
            a_size += n
        else:
            n, part_at = rank * nth(i - GROUP, c0, c1, c2, c3), b_size
            b_size += n
        n_blocks = tl.cdiv(n, BLOCK)
        is_b |= (i >= GROUP) & (block >= first_block)
        own_first = _take(own_first, first_block, block, first_block, n_blocks)
        own_n = _take(own_n, n, block, first_block, n_blocks)
        own_out = _take(own_out, out_at, block, first_block, n_blocks)
        own_part = _take(own_part, part_at, block, first_block, n_blocks)
        first_block += n_blocks
        out_at += tl.cdiv(n, ALIGN) * ALIGN
    own_out = tl.multiple_of(own_out, ALIGN)
    size = tl.where(is_b, b_size, a_size)
    if ALIGNED:
        own_n, own_part, size = tl.multiple_of(own_n, 4), tl.multiple_of(own_part, 4), tl.multiple_of(size, 4)
    offsets = (block - own_first) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < own_n
    parts_ptr = tl.where(is_b, b_parts_ptr, a_parts_ptr) + own_part
    n_parts = tl.where(is_b, n_b_parts, n_a_parts)
    if CUT:
        spans_ptr = tl.where(is_b, b_spans_ptr, a_spans_ptr)
        squares_ptr += own_first * n_cut + block - own_first
        acc = _sum_of_examples(
            parts_ptr, n_parts, size, offsets, mask, spans_ptr, squares_ptr, tl.cdiv(own_n, BLOCK), n_cut > 0
        )
    else:
        acc = tl.zeros((BLOCK,), dtype=tl.float32)
        for part in range(n_parts):
            acc += tl.load(parts_ptr + part * size + offsets, mask=mask, other=0.0)
    tl.store(out_ptr + own_out + offsets, acc, mask=mask)
    if STATS:
        write_partials(partials_ptr, block, only_tile_partials(acc, acc, mask, 0, True, False))
