"""How one launch serves up to four projections: which a program belongs to, and what is that projection's.

A kernel takes the tensors, columns c0 .. c3, ranks k0 .. k3 and factors of four projections as arguments, because a
table on the device would have to be uploaded first. Of those beyond GROUP any value may be given; they are not read.
"""

from collections.abc import Sequence
from typing import Any

import triton.language as tl

from ..backend import jit

MAX_GROUP = 4


def four(values: Sequence[Any]) -> tuple[Any, ...]:
    """`values` of up to four projections as a kernel takes them: what is not there is the first again."""
    first = values[0]
    return (*values, first, first, first)[:MAX_GROUP]


@jit
def of_projection(index, a, b, c, d, GROUP: tl.constexpr):
    """The value of projection `index`, of those that the first GROUP projections have."""
    value = a
    if GROUP > 1:
        value = tl.where(index == 1, b, value)
    if GROUP > 2:
        value = tl.where(index == 2, c, value)
    if GROUP > 3:
        value = tl.where(index == 3, d, value)
    return value


@jit
def locate(block, width, c0, c1, c2, c3, GROUP: tl.constexpr):
    """Which projection a block of columns belongs to, and which of its blocks it is: each has cdiv(c, width)."""
    n0, n1, n2 = tl.cdiv(c0, width), tl.cdiv(c1, width), tl.cdiv(c2, width)
    index = tl.full((), 0, tl.int32)
    first = tl.full((), 0, tl.int32)
    if GROUP > 1:
        index += (block >= n0).to(tl.int32)
        first = tl.where(block >= n0, n0, first)
    if GROUP > 2:
        index += (block >= n0 + n1).to(tl.int32)
        first = tl.where(block >= n0 + n1, n0 + n1, first)
    if GROUP > 3:
        index += (block >= n0 + n1 + n2).to(tl.int32)
        first = tl.where(block >= n0 + n1 + n2, n0 + n1 + n2, first)
    return index, block - first


@jit
def nth(index: tl.constexpr, a, b, c, d):
    """The value of projection `index`, known when the kernel is compiled."""
    value = a
    if index == 1:
        value = b
    if index == 2:
        value = c
    if index == 3:
        value = d
    return value


@jit
def products(c0, k0, c1, k1, c2, k2, c3, k3, GROUP: tl.constexpr):
    """Values of the gradient of each projection's B, 0 of those that are not there."""
    zero = tl.full((), 0, tl.int64)
    n0 = tl.cast(c0, tl.int64) * k0
    n1 = tl.cast(c1, tl.int64) * k1 if GROUP > 1 else zero
    n2 = tl.cast(c2, tl.int64) * k2 if GROUP > 2 else zero
    n3 = tl.cast(c3, tl.int64) * k3 if GROUP > 3 else zero
    return n0, n1, n2, n3
