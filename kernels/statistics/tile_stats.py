"""Statistics of a tile that a kernel holds in registers. Meanings: tensor_stats.py.

`tile_partials` is right for every tile, and costs several reductions over the block. A kernel that lives on the
memory's speed counts with tile_sums.py instead, which turns to `recount` here for NaN, infinity and squares outside the
fp32 range. Partials are added with `add_partials`, and stored with `write_partials`; `reduce.write_row` or
`reduce.reduce_partials` makes the row.

Counts are int32 inside a tile and float64 after it: exact integers. Sums of squares are fp32 inside a tile and
float64 after it: the relative error of a norm stays under 1e-6. A bf16 or fp32 tile is scaled by a power of two
first, since its squares may leave the fp32 range; squares of fp16 (2^-48 to 2^32) never do.

A flat tensor [n] is shared by `split(n)` programs of consecutive tiles of BLOCK values.
"""

import torch
import triton.language as tl

from ..backend import cdiv, jit
from .reduce import N_PARTIALS

_N_PARTIALS = tl.constexpr(N_PARTIALS)

_ABS_MASK = tl.constexpr(0x7FFFFFFF)  # every bit of an fp32 but the sign
_INF_BITS = tl.constexpr(0x7F800000)
_FP32_MIN_NORMAL_BITS = tl.constexpr(0x00800000)
_FP16_MIN_NORMAL_BITS = tl.constexpr(0x38800000)  # 2^-14 as fp32
# Two counts share one int32, so that a tile needs half the reductions.
_MAX_TILE = tl.constexpr(32768)

# 32 values per thread: few enough to stay in registers, and a sequential fp32 sum this short keeps 1e-6.
BLOCK = 8192
NUM_WARPS = 8
# An H100 has room for 132 x 8 such blocks at once; the 64 KiB of partials of 1024 are one short second stage.
# Fixed, not the SM count: the bits of a sum do not depend on the chip.
MAX_PROGRAMS = 1024

FAST_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@jit
def no_partials(ROUNDED: tl.constexpr, COUNT_SMALL: tl.constexpr):
    """Partials of nothing, the start of a loop over `add_partials`."""
    zero = tl.full((), 0.0, tl.float64)
    null = tl.full((), float("nan"), tl.float64)
    rounded = zero if ROUNDED else null
    small = zero if COUNT_SMALL else null
    return zero, zero, zero, zero, rounded, rounded, small, small


@jit
def fp32_bits(x):
    """Bits of a tile as fp32. bf16 is the upper half of fp32; the interpreter's cast loses subnormals."""
    if x.dtype == tl.bfloat16:
        return x.to(tl.int16, bitcast=True).to(tl.int32) << 16
    else:
        return x.to(tl.float32).to(tl.int32, bitcast=True)


@jit
def _count_two(low, high):
    """Counts two boolean tiles in one reduction: a tile has at most 2^15 values, 16 bits each."""
    packed = tl.sum(low.to(tl.int32) + (high.to(tl.int32) << 16))
    n_low = packed & 0xFFFF  # type: ignore[reportOperatorIssue]
    n_high = (packed >> 16) & 0xFFFF  # type: ignore[reportOperatorIssue]
    return n_low.to(tl.float64), n_high.to(tl.float64)


@jit
def _sum_of_squares(magnitude, max_bits, STORED_FP16: tl.constexpr):
    """Sum of squares of a tile of finite magnitudes, float64; `max_bits` are the bits of the largest."""
    if STORED_FP16:
        return tl.sum(magnitude * magnitude).to(tl.float64)
    else:
        # Scaled by 2^(127 - e), e the exponent field of the largest, values are below 2, or 4 for e = 254.
        # Clamped so that both the scale and its inverse are normal numbers.
        exponent = tl.minimum(tl.maximum(max_bits >> 23, 1), 253)
        scale = ((254 - exponent) << 23).to(tl.float32, bitcast=True)
        inverse = (exponent << 23).to(tl.float32, bitcast=True).to(tl.float64)
        scaled = magnitude * scale
        return tl.sum(scaled * scaled).to(tl.float64) * inverse * inverse


@jit
def tile_partials(acc, stored, mask, ROUNDED: tl.constexpr, COUNT_SMALL: tl.constexpr):
    """Statistics of one tile held in registers.

    Args:
        acc: fp32 tile, the accumulator before rounding. Not read unless ROUNDED; pass `stored` then.
        stored: the tile as written to memory, fp16, bf16 or fp32, at most 32768 values of any shape.
        mask: bool tile, False where the value is padding.
        ROUNDED: `stored` is `acc` rounded; count overflow and underflow. Else both are null.
        COUNT_SMALL: count subnormals and zeros. Else both are null.

    Returns:
        Eight float64 scalars in the order of FIELDS.
    """
    tl.static_assert(mask.numel <= _MAX_TILE, "tile_partials: at most 32768 values per tile")
    bits = tl.where(mask, fp32_bits(stored) & _ABS_MASK, 0)
    is_inf = bits == _INF_BITS
    n_nan, n_inf = _count_two(bits > _INF_BITS, is_inf)

    finite_bits = tl.where(bits < _INF_BITS, bits, 0)
    max_bits = tl.max(finite_bits)
    magnitude = finite_bits.to(tl.float32, bitcast=True)
    sumsq = _sum_of_squares(magnitude, max_bits, stored.dtype == tl.float16)
    absmax = tl.cast(tl.cast(max_bits, tl.float32, bitcast=True), tl.float64)

    null = tl.full((), float("nan"), tl.float64)
    n_overflow, n_underflow, n_subnormal, n_zero = null, null, null, null
    if ROUNDED:
        acc_bits = acc.to(tl.int32, bitcast=True) & _ABS_MASK
        overflowed = is_inf & (acc_bits < _INF_BITS)
        n_overflow, n_underflow = _count_two(overflowed, (bits == 0) & (acc_bits != 0) & mask)
    if COUNT_SMALL:
        min_normal = _FP16_MIN_NORMAL_BITS if stored.dtype == tl.float16 else _FP32_MIN_NORMAL_BITS
        is_zero = bits == 0
        n_subnormal, n_zero = _count_two((bits < min_normal) & ~is_zero, is_zero & mask)
    return sumsq, absmax, n_nan, n_inf, n_overflow, n_underflow, n_subnormal, n_zero


@jit
def add_partials(a, b):
    """Partials of two tiles together."""
    return (
        a[0] + b[0],
        tl.maximum(a[1], b[1]),
        a[2] + b[2],
        a[3] + b[3],
        a[4] + b[4],
        a[5] + b[5],
        a[6] + b[6],
        a[7] + b[7],
    )


@jit
def recount(
    x_ptr, first_row, last_row, first_col, last_col, row_stride,
    ROUNDED: tl.constexpr, COUNT_SMALL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Partials of a part of a matrix, read again from memory. ROUNDED, of fp32 alone: nothing was rounded.

    By quarters of a tile, for this must not take more registers than what the kernel is for.
    """
    M: tl.constexpr = max(BLOCK_M // 4, 1)  # type: ignore[reportAssignmentType]
    C: tl.constexpr = BLOCK_C if BLOCK_M >= 4 else BLOCK_C // 4
    tl.debug_barrier()  # other threads of the block may just have stored it
    total = no_partials(ROUNDED, COUNT_SMALL)
    for row in range(first_row, last_row, M):
        rows = row + tl.arange(0, M).to(tl.int64)
        for col in range(first_col, last_col, C):
            cols = col + tl.arange(0, C).to(tl.int64)
            mask = (rows < last_row)[:, None] & (cols < last_col)[None, :]
            x = tl.load(x_ptr + rows[:, None] * row_stride + cols[None, :], mask=mask, other=0.0)
            total = add_partials(total, tile_partials(x, x, mask, ROUNDED, COUNT_SMALL))
    return total


@jit
def write_partials(partials_ptr, program, partials):
    """Stores eight scalars to row `program` (int64) of a float64 buffer [n_programs, 8]."""
    row_ptr = partials_ptr + program * _N_PARTIALS
    for i in tl.static_range(_N_PARTIALS):  # type: ignore[reportGeneralTypeIssues]
        tl.store(row_ptr + i, partials[i])


def flat(x: torch.Tensor) -> torch.Tensor:
    """The values of `x` in memory order, a view unless `x` has gaps or repeats."""
    return x.permute(sorted(range(x.ndim), key=x.stride, reverse=True)).reshape(-1)


def split(n: int) -> tuple[int, int]:
    """Programs that share `n` values, and consecutive tiles for each."""
    tiles = max(1, cdiv(n, BLOCK))
    tiles_per_program = cdiv(tiles, MAX_PROGRAMS)
    return cdiv(tiles, tiles_per_program), tiles_per_program
