"""Triton kernels of the fused LoRA linear. What they compute together, and their rows, is in __init__.py.

    down             H parts = dropout(X) A^T           reads X once     counts non-finite X
    up               Z_i += s_i keep(L_i R_i)           in place         statistics of Z_i: Y_i (L = H, R_i = B_i^T),
                                                                         dX (L = G, R = A)
    grad             D_i = s_i Z_i R_i, E_i = s_i Z_i^T L_i              statistics of Z_i: dY_i gives G and dB_i
                                                        reads Z_i once   (R_i = B_i, L = H), and X gives dA (L = G),
                                                                         without D (read/grad.py)
    total down       G = sum of its parts               fixed order
    total gradients  dA_i, dB_i = sums of their parts   fixed order      statistics of dA_i and dB_i
    cast             16-bit of fp32                     autocast         statistics, overflow and underflow exact

up and grad serve up to four projections in one launch: z0_ptr .. z3_ptr are their tensors, c0 .. c3 their columns,
k0 .. k3 their ranks, s0 .. s3 their factors; those beyond GROUP are not read. What depends on the number of tokens is
never specialised: a batch of another length must not compile anything.

Shapes: X [M, K], Y_i and dY_i [M, N_i], H and G fp32 [M, sum of ranks], masks none: whether an element is kept is a
function of (seed, row, column). Rank products run on tensor cores as TF32 where the stored side is 16-bit (11 bits like
fp16, and no underflow of small B), as three TF32 products where it is fp32. On sm_75, where Triton uses none, they are
products of fp32. The 1 / (1 - p) of dropout is part of s_i everywhere. The rank is padded to 16, 32 or 64 inside and
never in memory; more than 64 go in chunks.
"""

import triton.language as tl

from ..backend import jit
from ..dropout import kept
from ..statistics.tile_stats import recount, write_partials
from ..statistics.tile_sums import add_tile, matrix_partials, only_tile_partials, start_sums
from .projections import projection


@jit
def operand(x, PRECISION: tl.constexpr):
    """fp32 operand of a TF32 product, rounded to its 11 bits. The hardware would cut the rest off, a bias of
    2^-12.

    Halves round up; NaN and infinity stay.
    """
    if PRECISION == "tf32":
        bits = x.to(tl.int32, bitcast=True)
        rounded = (bits + 0x1000) & -0x2000
        return tl.where((bits & 0x7F800000) == 0x7F800000, bits, rounded).to(tl.float32, bitcast=True)
    else:
        return x


@jit
def has_non_finite(x):
    """Whether an fp32 tile holds NaN or infinity: 0 times it is NaN then, and so is the sum."""
    return tl.sum(x * 0.0) != 0.0


@jit(do_not_specialize=["n_rows", "blocks_per_split"])
def _down_kernel(
    x_ptr, a_ptr, h_ptr, seed_ptr, partials_ptr, n_cols, rank, n_rows, blocks_per_split, p,
    DROPOUT: tl.constexpr, STATS: tl.constexpr, PRECISION: tl.constexpr,
    RANK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """h[split] [M, rank] = keep(x)[:, split] a[:, split]^T, a block of rows and a chunk of the rank."""
    row_block, split = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    chunk = tl.program_id(2)
    rows = row_block * BLOCK_M + tl.arange(0, BLOCK_M).to(tl.int64)
    ranks = chunk * RANK + tl.arange(0, RANK).to(tl.int64)
    n_rows, n_cols = tl.cast(n_rows, tl.int64), tl.cast(n_cols, tl.int64)
    row_mask, rank_mask = rows < n_rows, ranks < rank
    first = split * blocks_per_split
    last = tl.minimum(first + blocks_per_split, tl.cdiv(n_cols, BLOCK_C))
    acc = tl.zeros((BLOCK_M, RANK), dtype=tl.float32)
    sums = start_sums()
    for block in range(first, last):
        start = block * BLOCK_C
        cols = start + tl.arange(0, BLOCK_C)
        col_mask = cols < n_cols
        mask = row_mask[:, None] & col_mask[None, :]
        stored = tl.load(x_ptr + rows[:, None] * n_cols + cols[None, :], mask=mask, other=0.0)
        x = stored.to(tl.float32)
        if DROPOUT:
            if STATS:
                sums = add_tile(sums, stored, stored, False, False)
            x = kept(x, seed_ptr, rows, start, n_cols, p, BLOCK_M, BLOCK_C)
        a_mask = col_mask[:, None] & rank_mask[None, :]
        a = tl.load(a_ptr + ranks[None, :] * n_cols + cols[:, None], mask=a_mask, other=0.0)
        acc = tl.dot(x, operand(a, PRECISION), acc, input_precision=PRECISION)
    h_ptrs = h_ptr + (split * n_rows + rows[:, None]) * rank + ranks[None, :]
    tl.store(h_ptrs, acc, mask=row_mask[:, None] & rank_mask[None, :])
    if STATS and chunk == 0:
        null = tl.full((), float("nan"), tl.float64)
        nans, infs = tl.full((), 0.0, tl.float64), tl.full((), 0.0, tl.float64)
        # NaN or infinity in x makes its row of acc so, whatever it is multiplied with, unless it was dropped.
        if has_non_finite(sums[0] if DROPOUT else acc):
            last_row, last_col = tl.minimum((row_block + 1) * BLOCK_M, n_rows), tl.minimum(last * BLOCK_C, n_cols)
            found = recount(
                x_ptr, row_block * BLOCK_M, last_row, first * BLOCK_C, last_col, n_cols, False, False, BLOCK_M, BLOCK_C
            )
            nans, infs = found[2], found[3]
        program = row_block * tl.num_programs(1) + split
        write_partials(partials_ptr, program, (null, null, nans, infs, null, null, null, null))


@jit
def _left(
    l_ptr, out_ptr, rows, row_mask, ranks, first, rank, n_rows, row_stride, n_parts, keeps, PRECISION: tl.constexpr
):  # fmt: skip
    """The sum of l [parts, M, row_stride] at these rows and ranks of a projection whose columns begin at `first`, as an
    operand; stored as it is if `keeps` and there are several parts.
    """
    mask = row_mask[:, None] & (ranks < rank)[None, :]
    offsets = rows[:, None] * row_stride + (first + ranks)[None, :]
    total = tl.load(l_ptr + offsets, mask=mask, other=0.0)
    for part in range(1, n_parts):
        total += tl.load(l_ptr + part * n_rows * row_stride + offsets, mask=mask, other=0.0)
    if (n_parts > 1) & keeps:
        tl.store(out_ptr + offsets, total, mask=mask)
    return operand(total, PRECISION)


@jit
def _rights(r_ptr, ranks, cols, rank, n_cols, ACROSS: tl.constexpr):
    """A tile of r [ranks, columns]."""
    if ACROSS:
        pointers = r_ptr + cols[None, :] * rank + ranks[:, None]
    else:
        pointers = r_ptr + ranks[:, None] * n_cols + cols[None, :]
    return tl.load(pointers, mask=(ranks < rank)[:, None] & (cols < n_cols)[None, :], other=0.0)


@jit
def _product_by_chunks(
    l_ptr, l_out_ptr, r_ptr, rows, cols, row_mask, n_rows, n_cols, rank, l_first, l_row_stride, n_l_parts, keeps,
    ACROSS: tl.constexpr, PRECISION: tl.constexpr, RANK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A tile of l r where a rank is more than RANK: l is read again for every tile."""
    acc = tl.zeros((BLOCK_M, BLOCK_C), dtype=tl.float32)
    for chunk in range(0, rank, RANK):
        ranks = chunk + tl.arange(0, RANK).to(tl.int64)
        left = _left(
            l_ptr, l_out_ptr, rows, row_mask, ranks, l_first, rank, n_rows, l_row_stride, n_l_parts, keeps, PRECISION
        )  # fmt: skip
        right = _rights(r_ptr, ranks, cols, rank, n_cols, ACROSS)
        acc = tl.dot(left, operand(right, PRECISION), acc, input_precision=PRECISION)
    return acc


@jit(do_not_specialize=["n_rows", "n_l_parts", "tiles_per_program"])
def _up_kernel(
    z0_ptr, z1_ptr, z2_ptr, z3_ptr, r0_ptr, r1_ptr, r2_ptr, r3_ptr,
    l_ptr, l_out_ptr, seed_ptr, partials_ptr, c0, c1, c2, c3, k0, k1, k2, k3, l_row_stride,
    n_rows, n_l_parts, tiles_per_program, s0, s1, s2, s3, p,
    GROUP: tl.constexpr, ACROSS: tl.constexpr, CHUNKED: tl.constexpr, DROPOUT: tl.constexpr, STATS: tl.constexpr,
    ROUNDED: tl.constexpr, COUNT_SMALL: tl.constexpr, PRECISION: tl.constexpr, RANK: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """z_i [M, c_i] += s_i keep(l_i r_i), in place, for one block of rows and some tiles of columns of a projection.

    l [parts, M, k0 + k1 + ...] is added up here, and the sum left in l_out by the programs of each projection's first
    columns, if there were several parts. r_i is [k_i, c_i], or [c_i, k_i] if ACROSS. CHUNKED: a rank is more than RANK.
    ROUNDED where z is fp32: nothing is rounded then, and overflow and underflow are 0. In 16 bits they are null: z was
    rounded before.
    """
    row_block, col_block = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int32)
    _, own_block, z_ptr, r_ptr, n_cols, rank, scale, l_first = projection(
        col_block, tiles_per_program * BLOCK_C, z0_ptr, z1_ptr, z2_ptr, z3_ptr, r0_ptr, r1_ptr, r2_ptr, r3_ptr,
        c0, c1, c2, c3, k0, k1, k2, k3, s0, s1, s2, s3, GROUP,
    )  # fmt: skip
    n_rows = tl.cast(n_rows, tl.int64)
    rows = row_block * BLOCK_M + tl.arange(0, BLOCK_M).to(tl.int64)
    row_mask = rows < n_rows
    sums = start_sums()
    if not CHUNKED:
        ranks = tl.arange(0, RANK).to(tl.int64)
        left = _left(
            l_ptr, l_out_ptr, rows, row_mask, ranks, l_first, rank, n_rows, l_row_stride, n_l_parts, own_block == 0,
            PRECISION,
        )  # fmt: skip
    for tile in range(tiles_per_program):
        start = (own_block * tiles_per_program + tile) * BLOCK_C
        cols = start + tl.arange(0, BLOCK_C)
        mask = row_mask[:, None] & (cols < n_cols)[None, :]
        offsets = rows[:, None] * n_cols + cols[None, :]
        if not CHUNKED:
            right = _rights(r_ptr, ranks, cols, rank, n_cols, ACROSS)
            acc = tl.dot(left, operand(right, PRECISION), input_precision=PRECISION)
        else:
            acc = _product_by_chunks(
                l_ptr, l_out_ptr, r_ptr, rows, cols, row_mask, n_rows, n_cols, rank, l_first, l_row_stride, n_l_parts,
                start == 0, ACROSS, PRECISION, RANK, BLOCK_M, BLOCK_C,
            )  # fmt: skip
        if DROPOUT:
            acc = kept(acc, seed_ptr, rows, start, n_cols, p, BLOCK_M, BLOCK_C)
        z = tl.load(z_ptr + offsets, mask=mask, other=0.0)
        z = (z.to(tl.float32) + scale * acc).to(z.dtype)
        tl.store(z_ptr + offsets, z, mask=mask)
        if STATS:
            sums = add_tile(sums, z, z, ROUNDED, COUNT_SMALL)
    if STATS:
        first_col = own_block * tiles_per_program * BLOCK_C
        total = matrix_partials(
            sums, tiles_per_program, z_ptr, row_block * BLOCK_M, tl.minimum((row_block + 1) * BLOCK_M, n_rows),
            first_col, tl.minimum(first_col + tiles_per_program * BLOCK_C, n_cols), n_cols, ROUNDED, COUNT_SMALL,
            BLOCK_M, BLOCK_C,
        )  # fmt: skip
        write_partials(partials_ptr, tl.cast(col_block, tl.int64) * tl.num_programs(0) + row_block, total)


@jit(do_not_specialize=["n"])
def _cast_kernel(x_ptr, out_ptr, partials_ptr, n, ALIGNED: tl.constexpr, BLOCK: tl.constexpr):
    """out = x rounded to out's 16-bit dtype; statistics of out, with overflow and underflow. ALIGNED: 16 divides n."""
    program = tl.program_id(0).to(tl.int64)
    if ALIGNED:
        n = n // 16 * 16  # what multiple_of says of an argument is not heard
    offsets = program * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    acc = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    out = acc.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + offsets, out, mask=mask)
    n_padding = BLOCK - tl.minimum(n - program * BLOCK, BLOCK)
    write_partials(partials_ptr, program, only_tile_partials(acc, out, mask, n_padding, True, True))
