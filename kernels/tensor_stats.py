"""All statistics of any tensor in one pass, and the device helpers that let other kernels count what they hold.

For the stored values x of a tensor, and, where a kernel still holds it, the fp32 accumulator a they came from:

    sumsq        sum of x^2 over finite x
    absmax       max of |x| over finite x
    n_nan n_inf  counts in x
    n_overflow   a finite, x infinite                      (null without a)
    n_underflow  a not 0, x = 0                            (null without a)
    n_subnormal  0 < |x| < smallest normal of x's dtype    (null for fp32 unless `full`)
    n_zero       x = 0, of either sign                     (null for fp32 unless `full`)

Null is NaN, never 0. After a product of finite inputs every infinity is an overflow, accumulator or not.

A kernel that holds a tile calls `tile_partials`, adds tiles with `add_partials` if it loops, and ends with
`write_partials`; `reduce.write_row` or `reduce.reduce_partials` makes the row. Counts are int32 inside a tile and
float64 after it. Sums of squares are fp32 inside a tile and float64 after it: exact integers, and a relative error
of a norm under 1e-6. A bf16 or fp32 tile is scaled by a power of two first, since its squares may leave the
fp32 range; squares of fp16 (2^-48 to 2^32) never do.

Shapes: x any shape -> row float64 [9]; many tensors -> rows float64 [T, 9]; histogram int64 [256].
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from .backend import uses_triton
from .reduce import ABSMAX, FIELDS, N_FIELDS, N_PARTIALS, reduce_partials, reduce_ragged_partials

__all__ = [
    "ABSMAX",
    "FIELDS",
    "N_FIELDS",
    "N_PARTIALS",
    "add_partials",
    "exponent_histogram",
    "exponent_histogram_reference",
    "multi_tensor_stats",
    "no_partials",
    "tensor_stats",
    "tensor_stats_reference",
    "tile_partials",
    "write_partials",
]

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
# 1024 programs fill every chip (H100 holds 132 x 8 such blocks at once), and their 64 KiB of partials are one
# short second stage. Fixed, not the SM count: the bits of a sum do not depend on the chip.
MAX_PROGRAMS = 1024
N_EXPONENTS = 256


@triton.jit
def no_partials(ROUNDED: tl.constexpr, COUNT_SMALL: tl.constexpr):
    """Partials of nothing, the start of a loop over `add_partials`."""
    zero = tl.full((), 0.0, tl.float64)
    null = tl.full((), float("nan"), tl.float64)
    rounded = zero if ROUNDED else null
    small = zero if COUNT_SMALL else null
    return zero, zero, zero, zero, rounded, rounded, small, small


@triton.jit
def _count_two(low, high):
    """Counts two boolean tiles in one reduction. A tile has at most 2^15 values, so 16 bits each are enough."""
    packed = tl.sum(low.to(tl.int32) + (high.to(tl.int32) << 16))
    return (packed & 0xFFFF).to(tl.float64), ((packed >> 16) & 0xFFFF).to(tl.float64)


@triton.jit
def _sum_of_squares(magnitude, max_bits, STORED_FP16: tl.constexpr):
    """Sum of squares of a tile of finite magnitudes, float64; `max_bits` are the bits of the largest."""
    if STORED_FP16:
        return tl.sum(magnitude * magnitude).to(tl.float64)
    else:
        # Scaled by 2^(127 - e), e the exponent field of the largest, values are below 2 (below 4 for e = 254).
        # Clamped so that both the scale and its inverse are normal numbers.
        exponent = tl.minimum(tl.maximum(max_bits >> 23, 1), 253)
        scale = ((254 - exponent) << 23).to(tl.float32, bitcast=True)
        inverse = (exponent << 23).to(tl.float32, bitcast=True).to(tl.float64)
        scaled = magnitude * scale
        return tl.sum(scaled * scaled).to(tl.float64) * inverse * inverse


@triton.jit
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
    bits = tl.where(mask, stored.to(tl.float32).to(tl.int32, bitcast=True) & _ABS_MASK, 0)
    is_inf = bits == _INF_BITS
    n_nan, n_inf = _count_two(bits > _INF_BITS, is_inf)

    finite_bits = tl.where(bits < _INF_BITS, bits, 0)
    max_bits = tl.max(finite_bits)
    magnitude = finite_bits.to(tl.float32, bitcast=True)
    sumsq = _sum_of_squares(magnitude, max_bits, stored.dtype == tl.float16)
    absmax = max_bits.to(tl.float32, bitcast=True).to(tl.float64)

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


@triton.jit
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


@triton.jit
def write_partials(partials_ptr, program, partials):
    """Stores eight scalars to row `program` (int64) of a float64 buffer [n_programs, 8]."""
    row_ptr = partials_ptr + program * _N_PARTIALS
    for i in tl.static_range(_N_PARTIALS):
        tl.store(row_ptr + i, partials[i])


@triton.jit
def _stats_kernel(x_ptr, partials_ptr, n, tiles_per_program, COUNT_SMALL: tl.constexpr, BLOCK: tl.constexpr):
    """Each program reads `tiles_per_program` consecutive tiles of the flat tensor x [n]."""
    program = tl.program_id(0).to(tl.int64)
    total = no_partials(False, COUNT_SMALL)
    for tile in range(tiles_per_program):
        offsets = (program * tiles_per_program + tile) * BLOCK + tl.arange(0, BLOCK)
        mask = offsets < n
        x = tl.load(x_ptr + offsets, mask=mask, other=0.0)
        total = add_partials(total, tile_partials(x, x, mask, False, COUNT_SMALL))
    write_partials(partials_ptr, program, total)


@triton.jit
def _multi_stats_kernel(
    address_ptr, tensor_ptr, first_ptr, n_ptr, partials_ptr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr, MAX_PROGRAMS: tl.constexpr
):
    """`_stats_kernel` over many fp32 tensors: program p works on tensor[p], whose programs start at first[t]."""
    program = tl.program_id(0).to(tl.int64)
    tensor = tl.load(tensor_ptr + program)
    n = tl.load(n_ptr + tensor)
    x_ptr = tl.load(address_ptr + tensor).to(tl.pointer_type(tl.float32))
    if ALIGNED:
        x_ptr = tl.multiple_of(x_ptr, 16)
    tiles_per_program = tl.cdiv(tl.cdiv(n, BLOCK), MAX_PROGRAMS)
    start = (program - tl.load(first_ptr + tensor)) * tiles_per_program
    total = no_partials(False, False)
    for tile in range(tiles_per_program):
        offsets = (start + tile) * BLOCK + tl.arange(0, BLOCK)
        mask = offsets < n
        x = tl.load(x_ptr + offsets, mask=mask, other=0.0)
        total = add_partials(total, tile_partials(x, x, mask, False, False))
    write_partials(partials_ptr, program, total)


@triton.jit
def _histogram_kernel(x_ptr, counts_ptr, n, tiles_per_program, BLOCK: tl.constexpr, N_EXPONENTS: tl.constexpr):
    """Each program counts the fp32 exponent fields of its tiles into row `program` of int32 counts [P, 256]."""
    program = tl.program_id(0).to(tl.int64)
    counts = tl.zeros((N_EXPONENTS,), dtype=tl.int32)
    for tile in range(tiles_per_program):
        offsets = (program * tiles_per_program + tile) * BLOCK + tl.arange(0, BLOCK)
        mask = offsets < n
        bits = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32).to(tl.int32, bitcast=True)
        counts += tl.histogram((bits >> 23) & 0xFF, N_EXPONENTS, mask=mask)
    tl.store(counts_ptr + program * N_EXPONENTS + tl.arange(0, N_EXPONENTS), counts)


def _flat(x: torch.Tensor) -> torch.Tensor:
    """The values of `x` in memory order, a view unless `x` has gaps or repeats."""
    return x.permute(sorted(range(x.ndim), key=x.stride, reverse=True)).reshape(-1)


def _n_programs(n: int) -> int:
    """How many programs share `n` values, each with the same number of consecutive tiles."""
    tiles = max(1, triton.cdiv(n, BLOCK))
    return triton.cdiv(tiles, triton.cdiv(tiles, MAX_PROGRAMS))


def _counts_small(x: torch.Tensor, full: bool) -> bool:
    return full or x.dtype != torch.float32


def tensor_stats_triton(x: torch.Tensor, full: bool) -> torch.Tensor:
    """One row for an fp16, bf16 or fp32 tensor, in two launches."""
    x = _flat(x)
    n_programs = _n_programs(x.numel())
    partials = torch.empty((n_programs, N_PARTIALS), dtype=torch.float64, device=x.device)
    tiles_per_program = triton.cdiv(triton.cdiv(x.numel(), BLOCK), n_programs)
    _stats_kernel[(n_programs,)](
        x,
        partials,
        x.numel(),
        tiles_per_program,
        _counts_small(x, full),
        BLOCK,
        num_warps=NUM_WARPS,
        enable_fp_fusion=False,
    )
    return reduce_partials(partials, x.numel())
