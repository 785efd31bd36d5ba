"""Statistics of many tiles by a handful of instructions a value: counted by the way, recounted where that fails.

    sums = start_sums()
    for tile: sums = add_tile(sums, ...)          no barrier, no shuffle, no fp64, no mask
    partials = matrix_partials(sums, ...)         one reduction over the block, and a recount if it is needed

Every thread sums its own values. Squares are added in fp32, a few dozen of one tile, then the tile's sum to a total
that keeps what rounding loses (Kahan). Two 16-bit values share a register, and one PTX instruction compares both; bf16
is compared as if it were fp16, since the order of their bit patterns is the same. Padding must be zero, or make a value
non-finite: it adds nothing, and is taken off the number of zeros at the end.

That is exact if every value is finite and the sum of squares is 0 or in [2^-96, 2^128): a square below the normal
range is off by 2^-150 at most, so 2^30 of them leave a norm its 1e-6. Anything else shows in the sum, and
`tile_stats.recount` reads the program's share of the tensor again. fp16 needs that for NaN and infinity alone.
A share that is recounted is read twice.

Meanings: tensor_stats.py. Instructions per value: `make kernels`.
"""

import triton.language as tl
from triton import knobs
from triton.language.extra.cuda import num_threads

from ..backend import jit
from .tile_stats import fp32_bits, recount, tile_partials

_INTERPRETED = tl.constexpr(knobs.runtime.interpret)
_INTERPRETER_THREADS = tl.constexpr(128)

_MIN_SUM = tl.constexpr(2.0**-96)
_FP32_MIN_NORMAL = tl.constexpr(2.0**-126)
_NOT_ZERO = tl.constexpr("00010001")
_FP16_MIN_NORMAL = tl.constexpr("04000400")
_BF16_MIN_NORMAL = tl.constexpr("00800080")

_COMPARE_1 = tl.constexpr("{ .reg .b32 a, l; abs.f16x2 a, $2; mov.b32 l, 0x")
_COMPARE_2 = tl.constexpr("; set.lt.u32.f16x2 $0, a, l; mov.b32 $1, 0; }")
_ADD_HALVES = tl.constexpr("{ .reg .b32 s, w; neg.s32 s, $1; mov.b32 w, 0x0102; dp2a.lo.s32.s32 $0, s, w, $2; }")


@jit
def start_sums():
    """Sums of nothing, the start of a loop over `add_tile`.

    Returns:
        For each thread of the block: sum of squares, what it has too much by rounding, largest magnitude (fp32); zeros,
        values below the normal range with zeros among them, zeros before rounding (int32).
    """
    if _INTERPRETED:
        T: tl.constexpr = _INTERPRETER_THREADS
    else:
        T: tl.constexpr = num_threads()
    zero = tl.zeros((T,), dtype=tl.float32)
    count = tl.zeros((T,), dtype=tl.int32)
    return zero, zero, zero, count, count, count


@jit
def _by_thread(x, T: tl.constexpr):
    """A tile as [T, K], the K values of each of T threads.

    Runs of 16 bytes are dealt to the threads in turn. That is how Triton lays out a tile it loads, so every thread
    meets the values it holds; a tile laid out otherwise would be moved first.
    """
    V: tl.constexpr = min(128 // x.dtype.primitive_bitwidth, x.numel // T)
    tl.static_assert(x.numel // T >= 8, "add_tile: at least eight values per thread")
    return tl.reshape(tl.permute(tl.reshape(x, (x.numel // (T * V), T, V)), (1, 0, 2)), (T, x.numel // T))


@jit
def _fp32(x):
    """A tile as fp32. The interpreter's own cast of bf16 loses subnormals."""
    return fp32_bits(x).to(tl.float32, bitcast=True) if x.dtype == tl.bfloat16 else x.to(tl.float32)


@jit
def _sum_of_squares(x):
    """For x [T, K] fp32: the sum of each row's squares, [T]; eight to a chain of fused multiply-adds."""
    even, odd = tl.split(tl.reshape(x, (x.shape[0], x.shape[1] // 8, 2, 2, 2)))
    total = tl.zeros((x.shape[0], x.shape[1] // 8), dtype=tl.float32)
    for eighth in tl.static_range(4):  # type: ignore[reportGeneralTypeIssues]
        a, b = tl.split(even if eighth < 2 else odd)
        a, b = tl.split(a if eighth % 2 == 0 else b)
        total = tl.fma(a, a, tl.fma(b, b, total))
    return tl.sum(total, axis=1)


@jit
def _add_below(n, x, LIMIT: tl.constexpr):
    """n [T] + the magnitudes below LIMIT in each row of x [T, K], fp16, or bf16 compared by its bits as if it were.

    `set` makes 0xFFFF of each half that is below. With a low and b high ones, minus the sum of a row's masks is
    a + 2^16 (b - a), a below 2^15; `dp2a` adds twice its low half and once its high one, a + b.

    Args:
        LIMIT: bits of an fp16, twice in 32 bits, as hexadecimal digits.
    """
    if _INTERPRETED:
        bits = x.to(tl.int16, bitcast=True).to(tl.int32) & 0x7FFF
        return n + tl.sum((bits < int(LIMIT.value[:4], 16)).to(tl.int32), axis=1)
    else:
        compare: tl.constexpr = _COMPARE_1 + LIMIT + _COMPARE_2
        masks = tl.inline_asm_elementwise(compare, "=r,=r,r", [x], dtype=tl.int32, is_pure=True, pack=2)  # type: ignore[reportArgumentType]
        masks = tl.sum(masks, axis=1)
        return tl.inline_asm_elementwise(_ADD_HALVES, "=r,r,r", [masks, n], dtype=tl.int32, is_pure=True, pack=1)  # type: ignore[reportArgumentType]


@jit
def add_tile(sums, acc, stored, ROUNDED: tl.constexpr, COUNT_SMALL: tl.constexpr):
    """Adds one tile held in registers to `sums`, each thread its own values.

    Args:
        sums: of `start_sums`.
        acc, stored, ROUNDED, COUNT_SMALL: as `tile_partials` takes them, but what a mask would hide must be 0 in
            both. At least eight values per thread. A 16-bit tile that is ROUNDED needs COUNT_SMALL.
    """
    T: tl.constexpr = sums[0].numel
    sumsq, lost, absmax, n_zero, n_small, n_acc_zero = sums
    x = _by_thread(stored, T)
    x32 = _fp32(x)
    if COUNT_SMALL:
        if x.dtype == tl.float32:
            n_zero += tl.sum((x == 0.0).to(tl.int32), axis=1)
            n_small += tl.sum((tl.abs(x) < _FP32_MIN_NORMAL).to(tl.int32), axis=1)
        else:
            n_zero = _add_below(n_zero, x, _NOT_ZERO)
            n_small = _add_below(n_small, x, _FP16_MIN_NORMAL if x.dtype == tl.float16 else _BF16_MIN_NORMAL)
    if ROUNDED and x.dtype != tl.float32:
        n_acc_zero += tl.sum((_by_thread(acc, T) == 0.0).to(tl.int32), axis=1)
    squares = _sum_of_squares(x32) - lost
    total = sumsq + squares
    lost = (total - sumsq) - squares
    return total, lost, tl.maximum(absmax, tl.max(tl.abs(x32), axis=1)), n_zero, n_small, n_acc_zero


@jit
def _finish(sums, n_padding, dtype: tl.constexpr, ROUNDED: tl.constexpr, COUNT_SMALL: tl.constexpr):
    """Partials of what was added, `n_padding` values of it padding, and whether they are to be trusted."""
    sumsq, lost, absmax, n_zero, n_small, n_acc_zero = sums
    counts = tl.join(n_small.to(tl.float64), n_acc_zero.to(tl.float64))
    parts = tl.join(tl.join(tl.cast(sumsq, tl.float64) - lost.to(tl.float64), n_zero.to(tl.float64)), counts)
    first, second = tl.split(tl.sum(parts, axis=0))
    sumsq, zeros = tl.split(first)
    small, acc_zeros = tl.split(second)
    absmax = tl.cast(tl.max(absmax), tl.float64)
    exact = (sumsq >= _MIN_SUM) & (sumsq < float("inf")) | (sumsq == 0.0) & (absmax == 0.0)

    none = tl.full((), 0.0, tl.float64)
    null = tl.full((), float("nan"), tl.float64)
    n_overflow, n_underflow, n_subnormal, n_true_zero = null, null, null, null
    if ROUNDED:
        n_overflow = none
        n_underflow = none if dtype == tl.float32 else zeros - acc_zeros
    if COUNT_SMALL:
        n_subnormal, n_true_zero = small - zeros, zeros - tl.cast(n_padding, tl.float64)
    return (sumsq, absmax, none, none, n_overflow, n_underflow, n_subnormal, n_true_zero), exact


@jit
def matrix_partials(
    sums, n_tiles, x_ptr, first_row, last_row, first_col, last_col, row_stride,
    ROUNDED: tl.constexpr, COUNT_SMALL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Partials of a program's share of a matrix, whose `n_tiles` tiles [BLOCK_M, BLOCK_C] are in `sums`.

    Args:
        first_row, last_row, first_col, last_col: the share, without padding; the last ones are not in it.
        x_ptr, row_stride: where the share can be read again. What the program has stored itself may be.
        ROUNDED: fp32 that nothing was rounded to: overflow and underflow are 0, else null.
    """
    n_valid = tl.maximum(last_row - first_row, 0) * tl.maximum(last_col - first_col, 0)
    n_padding = n_tiles * BLOCK_M * BLOCK_C - n_valid
    partials, exact = _finish(sums, n_padding, x_ptr.dtype.element_ty, ROUNDED, COUNT_SMALL)
    if exact == 0:
        partials = recount(
            x_ptr, first_row, last_row, first_col, last_col, row_stride, ROUNDED, COUNT_SMALL, BLOCK_M, BLOCK_C
        )
    return partials


@jit
def flat_partials(x_ptr, first, n_tiles, n, COUNT_SMALL: tl.constexpr, BLOCK: tl.constexpr):
    """Partials of the tiles `first` to `first + n_tiles` of a flat tensor [n]."""
    sums = start_sums()
    for tile in range(n_tiles):
        offsets = (first + tile) * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + offsets, mask=offsets < n, other=0.0)
        sums = add_tile(sums, x, x, False, COUNT_SMALL)
    last = tl.minimum((first + n_tiles) * BLOCK, n)
    return matrix_partials(sums, n_tiles, x_ptr, 0, 1, first * BLOCK, last, 0, False, COUNT_SMALL, 1, BLOCK)


@jit
def only_tile_partials(acc, stored, mask, n_padding, ROUNDED: tl.constexpr, COUNT_SMALL: tl.constexpr):
    """`tile_partials` of a program's only tile, with one reduction in most cases. What `mask` hides must be 0."""
    sums = add_tile(start_sums(), acc, stored, ROUNDED, COUNT_SMALL)
    partials, exact = _finish(sums, n_padding, stored.dtype, ROUNDED, COUNT_SMALL)
    if exact == 0:
        partials = tile_partials(acc, stored, mask, ROUNDED, COUNT_SMALL)
    return partials
