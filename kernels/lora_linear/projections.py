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
def outer_place(index, c0, k0, c1, k1, c2, k2, c3, k3, GROUP: tl.constexpr):
    """Where the gradient of a projection's B begins, behind those before it, and values of all of them."""
    zero = tl.full((), 0, tl.int64)
    n0 = tl.cast(c0, tl.int64) * k0
    n1 = tl.cast(c1, tl.int64) * k1 if GROUP > 1 else zero
    n2 = tl.cast(c2, tl.int64) * k2 if GROUP > 2 else zero
    n3 = tl.cast(c3, tl.int64) * k3 if GROUP > 3 else zero
    return of_projection(index, 0, n0, n0 + n1, n0 + n1 + n2, GROUP), n0 + n1 + n2 + n3


@jit
def projection(
    block, width, z0_ptr, z1_ptr, z2_ptr, z3_ptr, r0_ptr, r1_ptr, r2_ptr, r3_ptr, c0, c1, c2, c3, k0, k1, k2, k3,
    s0, s1, s2, s3, GROUP: tl.constexpr,
):  # fmt: skip
    """Of the projection that a block of `width` columns belongs to: which it is and which of its blocks this is; z, r,
    columns, rank, factor, and where its part of l begins.
    """
    index, own_block = locate(block, width, c0, c1, c2, c3, GROUP)
    own_block = tl.cast(own_block, tl.int64)
    z_ptr = of_projection(index, z0_ptr, z1_ptr, z2_ptr, z3_ptr, GROUP)
    r_ptr = of_projection(index, r0_ptr, r1_ptr, r2_ptr, r3_ptr, GROUP)
    n_cols = tl.cast(of_projection(index, c0, c1, c2, c3, GROUP), tl.int64)
    rank = tl.cast(of_projection(index, k0, k1, k2, k3, GROUP), tl.int64)
    scale = of_projection(index, s0, s1, s2, s3, GROUP)
    l_first = tl.cast(of_projection(index, 0, k0, k0 + k1, k0 + k1 + k2, GROUP), tl.int64)
    return index, own_block, z_ptr, r_ptr, n_cols, rank, scale, l_first
