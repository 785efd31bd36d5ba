"""Dropout in a Triton kernel: which values it keeps is a function of a seed and of their place alone."""

import triton.language as tl

from .backend import jit


@jit
def kept(x, seed_ptr, rows, first_col, n_cols, p, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr):
    """A tile of x, 0 where dropout takes it away: by word (column % 4) of Philox(seed, row, column // 4).

    One Philox call gives four words; a call for each element would cost more than reading it.
    """
    quads = first_col // 4 + tl.arange(0, BLOCK_C // 4)
    offsets = rows[:, None] * ((n_cols + 3) // 4) + quads[None, :]
    a, b, c, d = tl.randint4x(tl.load(seed_ptr), offsets)
    words = tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), (BLOCK_M, BLOCK_C))
    return tl.where(tl.random.uint_to_uniform_float(words) >= p, x, 0.0)
