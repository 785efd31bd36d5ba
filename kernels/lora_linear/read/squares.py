"""The squares of pieces of gradients that are in registers, right to 1e-6 over all of fp32's range, in fp64.

Values are divided by a power of two that leaves the largest below 4, and their squares added in fp32. What is not
finite leaves something not finite.
"""

import triton.language as tl

from ...backend import jit
from ..projections import nth


@jit
def inverse_of(largest):
    """The exponent of a magnitude with the bias of 127, at most 253 and 0 below the normal numbers, and 2^-exponent."""
    exponent = tl.minimum(largest.to(tl.int32, bitcast=True) >> 23, 253)
    return exponent, ((254 - exponent) << 23).to(tl.float32, bitcast=True)


@jit
def scaled_back(total, exponent):
    """total * 4^exponent in fp64."""
    power = ((2 * exponent + 769).to(tl.int64) << 52).to(tl.float64, bitcast=True)  # 2 (exponent - 127) + 1023
    return total.to(tl.float64) * power


@jit
def square(values):
    """The sum of the squares of fp32 values [any] or [any, any]."""
    largest = tl.max(tl.abs(values), axis=0)
    exponent, inverse = inverse_of(tl.max(largest, axis=0) if len(values.shape) == 2 else largest)
    scaled = values * inverse
    total = tl.sum(scaled * scaled, axis=0)
    return scaled_back(tl.sum(total, axis=0) if len(values.shape) == 2 else total, exponent)


@jit
def write_squares(piece, scale, squares_ptr, size, k0, k1, k2, k3, GROUP: tl.constexpr):
    """Writes the square of scale times a piece [C, RANK] of the ranks of this chunk; of several projections that of
    each one's ranks, `size` values apart.
    """
    factor = tl.cast(scale, tl.float64)
    if GROUP == 1:
        tl.store(squares_ptr, square(piece) * (factor * factor))
    else:
        RANK: tl.constexpr = piece.shape[1]
        ranks, start = tl.program_id(2) * RANK + tl.arange(0, RANK), tl.full((), 0, tl.int32)
        largest = tl.max(tl.abs(piece), axis=0)
        inverses = tl.full((RANK,), 0.0, tl.float32)
        for i in tl.static_range(GROUP):  # type: ignore[reportGeneralTypeIssues]
            stop = start + nth(i, k0, k1, k2, k3)
            is_own = (ranks >= start) & (ranks < stop)
            _, inverse = inverse_of(tl.max(tl.where(is_own, largest, 0.0), axis=0))
            inverses = tl.where(is_own, inverse, inverses)
            start = stop
        scaled = piece * inverses[None, :]
        by_rank = tl.sum(scaled * scaled, axis=0)
        start = tl.full((), 0, tl.int32)
        for i in tl.static_range(GROUP):  # type: ignore[reportGeneralTypeIssues]
            stop = start + nth(i, k0, k1, k2, k3)
            is_own = (ranks >= start) & (ranks < stop)
            exponent, _ = inverse_of(tl.max(tl.where(is_own, largest, 0.0), axis=0))
            total = tl.sum(tl.where(is_own, by_rank, 0.0), axis=0)
            tl.store(squares_ptr + i * size, scaled_back(total, exponent) * (factor * factor))
            start = stop
