"""Triton kernels of the fused LoRA linear. What they compute together, and their rows, is in lora_linear.py.

    down     H  = dropout(X) A^T          reads X once     counts non-finite X
    up       Z += s keep(L R^T)           in place         statistics of Z: Y (L=H, R=B), dX (L=G, R=A^T)
    grad     D  = Z R,  E = Z^T L         reads Z once     statistics of Z: dY gives G (R=B) and dB (L=H)
                                                           and X gives dA (L=G), without D
    total    out = s sum of partials      fixed order      statistics of out: H, G, dA, dB
    widen    fp32 of keep(Z)              for sm_75        statistics of Z
    cast     16-bit of fp32               autocast         statistics, overflow and underflow exact
    rows     partials of all sites -> rows, n_overflow by the rule of lora_linear.py

Shapes: X [M, K], Y and dY [M, N], L [M, R] fp32, R [C, R] fp32 by its strides, masks none: whether an element
is kept is a function of (seed, row, column). Rank products run on tensor cores as TF32 where the stored side
is 16-bit (11 bits like fp16, and no underflow of small B), as three TF32 products where it is fp32. The 1 /
(1 - p) of dropout is part of s everywhere. The rank is padded to 16, 32 or 64 inside and never in memory;
more than 64 go in chunks.
"""

import triton.language as tl

from .backend import jit
from .reduce import BLOCK_P, FIELDS, N_FIELDS, N_PARTIALS, add_programs, store_row
from .tile_stats import add_partials, no_partials, tile_partials, write_partials

_N_PARTIALS = tl.constexpr(N_PARTIALS)
_N_FIELDS = tl.constexpr(N_FIELDS)
_N_NAN = tl.constexpr(FIELDS.index("n_nan"))
_N_INF = tl.constexpr(FIELDS.index("n_inf"))
_N_OVERFLOW = tl.constexpr(FIELDS.index("n_overflow"))


@jit
def keep_tile(seed_ptr, rows, first_col, n_cols, p, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr):
    """Which elements of a tile dropout keeps: word (column % 4) of Philox(seed, row, column // 4).

    One Philox call gives four words; a call for each element would cost more than reading it.
    """
    quads = first_col // 4 + tl.arange(0, BLOCK_C // 4)
    offsets = rows[:, None] * ((n_cols + 3) // 4) + quads[None, :]
    a, b, c, d = tl.randint4x(tl.load(seed_ptr), offsets)
    words = tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), (BLOCK_M, BLOCK_C))
    return tl.random.uint_to_uniform_float(words) >= p


@jit
def _operand(x, PRECISION: tl.constexpr):
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


@jit(do_not_specialize=["n_rows", "blocks_per_split"])
def _down_kernel(
    x_ptr, a_ptr, h_ptr, seed_ptr, partials_ptr, n_rows, n_cols, rank, blocks_per_split, p,
    DROPOUT: tl.constexpr, STATS: tl.constexpr, PRECISION: tl.constexpr,
    RANK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """h[split] [M, rank] = keep(x)[:, split] a[:, split]^T, a block of rows and a chunk of the rank."""
    row_block, split = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    chunk = tl.program_id(2)
    rows = row_block * BLOCK_M + tl.arange(0, BLOCK_M).to(tl.int64)
    ranks = chunk * RANK + tl.arange(0, RANK).to(tl.int64)
    n_rows, n_cols = n_rows.to(tl.int64), n_cols.to(tl.int64)
    row_mask, rank_mask = rows < n_rows, ranks < rank
    first = split * blocks_per_split
    last = tl.minimum(first + blocks_per_split, tl.cdiv(n_cols, BLOCK_C))
    acc = tl.zeros((BLOCK_M, RANK), dtype=tl.float32)
    n_nan = tl.zeros((BLOCK_M,), dtype=tl.int32)
    n_inf = tl.zeros((BLOCK_M,), dtype=tl.int32)
    for block in range(first, last):
        start = block * BLOCK_C
        cols = start + tl.arange(0, BLOCK_C)
        col_mask = cols < n_cols
        mask = row_mask[:, None] & col_mask[None, :]
        x = tl.load(x_ptr + rows[:, None] * n_cols + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        if STATS:
            n_nan += tl.sum((x != x).to(tl.int32), axis=1)
            n_inf += tl.sum((tl.abs(x) == float("inf")).to(tl.int32), axis=1)
        if DROPOUT:
            x = tl.where(keep_tile(seed_ptr, rows, start, n_cols, p, BLOCK_M, BLOCK_C), x, 0.0)
        a_mask = col_mask[:, None] & rank_mask[None, :]
        a = tl.load(a_ptr + ranks[None, :] * n_cols + cols[:, None], mask=a_mask, other=0.0)
        acc = tl.dot(x, _operand(a, PRECISION), acc, input_precision=PRECISION)
    h_ptrs = h_ptr + (split * n_rows + rows[:, None]) * rank + ranks[None, :]
    tl.store(h_ptrs, acc, mask=row_mask[:, None] & rank_mask[None, :])
    if STATS and chunk == 0:
        null = tl.full((), float("nan"), tl.float64)
        nans, infs = tl.sum(n_nan).to(tl.float64), tl.sum(n_inf).to(tl.float64)
        program = row_block * tl.num_programs(1) + split
        write_partials(partials_ptr, program, (null, null, nans, infs, null, null, null, null))


@jit(do_not_specialize=["n_rows", "first_row", "tiles_per_program"])
def _up_kernel(
    z_ptr, l_ptr, r_ptr, delta_ptr, seed_ptr, partials_ptr, n_rows, n_cols, rank,
    l_row_stride, r_col_stride, r_rank_stride, first_row, tiles_per_program, scale, p,
    DROPOUT: tl.constexpr, STATS: tl.constexpr, ROUNDED: tl.constexpr, COUNT_SMALL: tl.constexpr,
    PRECISION: tl.constexpr, RANK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """z [M, C] += scale keep(l r^T), in place, for one block of rows and some tiles of columns.

    RANK = 0 adds scale keep(delta) instead, delta [M, C] fp32 a product that cuBLAS made (sm_75). ROUNDED
    where z is
    fp32: nothing is rounded then, and overflow and underflow are 0. Into 16 bits they are null, since whoever
    made z has rounded it already.
    """
    row_block, col_block = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    n_rows, n_cols = n_rows.to(tl.int64), n_cols.to(tl.int64)
    rows = row_block * BLOCK_M + tl.arange(0, BLOCK_M).to(tl.int64)
    row_mask = rows < n_rows
    total = no_partials(ROUNDED, COUNT_SMALL)
    for tile in range(tiles_per_program):
        start = (col_block * tiles_per_program + tile) * BLOCK_C
        cols = start + tl.arange(0, BLOCK_C)
        col_mask = cols < n_cols
        mask = row_mask[:, None] & col_mask[None, :]
        offsets = rows[:, None] * n_cols + cols[None, :]
        if RANK == 0:
            acc = tl.load(delta_ptr + offsets, mask=mask, other=0.0)
        else:
            acc = tl.zeros((BLOCK_M, BLOCK_C), dtype=tl.float32)
            for chunk in range(0, rank, RANK):
                ranks = chunk + tl.arange(0, RANK).to(tl.int64)
                rank_mask = ranks < rank
                l_ptrs = l_ptr + rows[:, None] * l_row_stride + ranks[None, :]
                left = tl.load(l_ptrs, mask=row_mask[:, None] & rank_mask[None, :], other=0.0)
                r_ptrs = r_ptr + cols[None, :] * r_col_stride + ranks[:, None] * r_rank_stride
                right = tl.load(r_ptrs, mask=rank_mask[:, None] & col_mask[None, :], other=0.0)
                left, right = _operand(left, PRECISION), _operand(right, PRECISION)
                acc = tl.dot(left, right, acc, input_precision=PRECISION)
        if DROPOUT:
            keep = keep_tile(seed_ptr, first_row + rows, start, n_cols, p, BLOCK_M, BLOCK_C)
            acc = tl.where(keep, acc, 0.0)
        z = tl.load(z_ptr + offsets, mask=mask, other=0.0)
        z = (z.to(tl.float32) + scale * acc).to(z.dtype)
        tl.store(z_ptr + offsets, z, mask=mask)
        if STATS:
            total = add_partials(total, tile_partials(z, z, mask, ROUNDED, COUNT_SMALL))
    if STATS:
        write_partials(partials_ptr, row_block * tl.num_programs(1) + col_block, total)


@jit(do_not_specialize=["n_rows", "rows_per_split"])
def _grad_kernel(
    z_ptr, l_ptr, r_ptr, down_ptr, outer_ptr, seed_ptr, partials_ptr, l_bad_ptr, n_rows, n_cols, rank,
    l_row_stride, r_col_stride, outer_col_stride, outer_rank_stride, rows_per_split, p,
    DROPOUT: tl.constexpr, DOWN: tl.constexpr, STATS: tl.constexpr, COUNT_SMALL: tl.constexpr,
    PRECISION: tl.constexpr, RANK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Reads z [M, C] once, a strip of BLOCK_C columns and some rows per program:

    outer[split] [C, rank] = z^T l  stays in registers;  down[strip] [M, rank] = z r  leaves with every tile.
    """
    strip, split = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    chunk = tl.program_id(2)
    n_rows, n_cols = n_rows.to(tl.int64), n_cols.to(tl.int64)
    cols = strip * BLOCK_C + tl.arange(0, BLOCK_C)
    ranks = chunk * RANK + tl.arange(0, RANK).to(tl.int64)
    col_mask, rank_mask = cols < n_cols, ranks < rank
    first = split * rows_per_split
    last = tl.minimum(first + rows_per_split, n_rows)
    outer = tl.zeros((BLOCK_C, RANK), dtype=tl.float32)
    right_mask = col_mask[:, None] & rank_mask[None, :]
    if DOWN:
        right = tl.load(r_ptr + cols[:, None] * r_col_stride + ranks[None, :], mask=right_mask, other=0.0)
        right = _operand(right, PRECISION)
    total = no_partials(False, COUNT_SMALL)
    l_bad = tl.zeros((BLOCK_M,), dtype=tl.int32)
    for start in range(first, last, BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M).to(tl.int64)
        row_mask = rows < last
        mask = row_mask[:, None] & col_mask[None, :]
        z_ptrs = z_ptr + rows[:, None] * n_cols + cols[None, :]
        stored = tl.load(z_ptrs, mask=mask, other=0.0, eviction_policy="evict_first")
        z = stored.to(tl.float32)
        left_mask = row_mask[:, None] & rank_mask[None, :]
        left = tl.load(l_ptr + rows[:, None] * l_row_stride + ranks[None, :], mask=left_mask, other=0.0)
        if DROPOUT:
            z = tl.where(keep_tile(seed_ptr, rows, strip * BLOCK_C, n_cols, p, BLOCK_M, BLOCK_C), z, 0.0)
        if DOWN:
            down = tl.dot(z, right, input_precision=PRECISION)
            down_ptrs = down_ptr + (strip * n_rows + rows[:, None]) * rank + ranks[None, :]
            tl.store(down_ptrs, down, mask=left_mask, eviction_policy="evict_last")
        outer = tl.dot(tl.trans(z), _operand(left, PRECISION), outer, input_precision=PRECISION)
        if STATS:
            total = add_partials(total, tile_partials(stored, stored, mask, False, COUNT_SMALL))
            l_bad += tl.sum((tl.abs(left) < float("inf")).to(tl.int32) ^ 1, axis=1)
    outer_ptrs = outer_ptr + split * n_cols * rank + cols[:, None] * outer_col_stride
    tl.store(outer_ptrs + ranks[None, :] * outer_rank_stride, outer, mask=right_mask)
    if STATS:
        program = (chunk * tl.num_programs(1) + split) * tl.num_programs(0) + strip
        tl.store(l_bad_ptr + program, tl.sum(l_bad).to(tl.float64))
        if chunk == 0:
            write_partials(partials_ptr, program, total)


@jit(do_not_specialize=["n", "n_parts", "part_stride"])
def _total_kernel(
    parts_ptr, out_ptr, partials_ptr, n, n_parts, part_stride, width, out_stride, scale,
    STATS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out = scale * sum of the parts, in order. Value i goes to row i // width, column i % width of out."""
    program = tl.program_id(0).to(tl.int64)
    offsets = program * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    acc = tl.zeros((BLOCK,), dtype=tl.float32)
    for part in range(n_parts):
        acc += tl.load(parts_ptr + part * part_stride.to(tl.int64) + offsets, mask=mask, other=0.0)
    acc *= scale
    tl.store(out_ptr + (offsets // width) * out_stride + offsets % width, acc, mask=mask)
    if STATS:
        write_partials(partials_ptr, program, tile_partials(acc, acc, mask, True, False))


@jit(do_not_specialize=["n_rows", "first_row"])
def _widen_kernel(
    z_ptr, out_ptr, seed_ptr, partials_ptr, n_rows, n_cols, first_row, p,
    DROPOUT: tl.constexpr, STATS: tl.constexpr, COUNT_SMALL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out [M, C] fp32 = keep(z), for GEMMs on chips without TF32. Rows count from `first_row`."""
    row_block, col_block = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    n_cols = n_cols.to(tl.int64)
    rows = row_block * BLOCK_M + tl.arange(0, BLOCK_M).to(tl.int64)
    start = col_block * BLOCK_C
    cols = start + tl.arange(0, BLOCK_C)
    mask = (rows < n_rows)[:, None] & (cols < n_cols)[None, :]
    offsets = rows[:, None] * n_cols + cols[None, :]
    stored = tl.load(z_ptr + offsets, mask=mask, other=0.0)
    z = stored.to(tl.float32)
    if DROPOUT:
        z = tl.where(keep_tile(seed_ptr, first_row + rows, start, n_cols, p, BLOCK_M, BLOCK_C), z, 0.0)
    tl.store(out_ptr + offsets, z, mask=mask)
    if STATS:
        program = row_block * tl.num_programs(1) + col_block
        write_partials(partials_ptr, program, tile_partials(stored, stored, mask, False, COUNT_SMALL))


@jit(do_not_specialize=["n"])
def _cast_kernel(x_ptr, out_ptr, partials_ptr, n, BLOCK: tl.constexpr):
    """out = x rounded to out's 16-bit dtype; statistics of out, with overflow and underflow."""
    program = tl.program_id(0).to(tl.int64)
    offsets = program * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    acc = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    out = acc.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + offsets, out, mask=mask)
    write_partials(partials_ptr, program, tile_partials(acc, out, mask, True, True))


@jit
def _n_bad(row):
    """n_nan + n_inf of a row held as a vector [8]."""
    columns = tl.arange(0, _N_PARTIALS)
    return tl.sum(tl.where((columns == _N_NAN) | (columns == _N_INF), row, 0.0))


@jit
def _after_product(row, n_bad):
    """With no non-finite input every infinity is an overflow."""
    columns = tl.arange(0, _N_PARTIALS)
    n_inf = tl.sum(tl.where(columns == _N_INF, row, 0.0))
    return tl.where(columns == _N_OVERFLOW, tl.where(n_bad == 0.0, n_inf, row), row)


@jit(do_not_specialize=["n_in_programs", "n_out_programs", "n_in", "n_out", "index"])
def _forward_rows_kernel(in_ptr, out_ptr, rows_ptr, n_in_programs, n_out_programs, n_in, n_out, index):
    """Row in, and row out of projection `index`. One program, because `out` needs what `in` found."""
    columns = tl.arange(0, _N_PARTIALS)
    in_row = add_programs(in_ptr, n_in_programs)
    # `maximum` has turned the null of absmax into 0.
    counts_only = tl.where((columns == _N_NAN) | (columns == _N_INF), in_row, float("nan"))
    store_row(counts_only, n_in, rows_ptr)
    out_row = _after_product(add_programs(out_ptr, n_out_programs), _n_bad(in_row))
    store_row(out_row, n_out, rows_ptr + (1 + index) * _N_FIELDS)


@jit(
    do_not_specialize=[
        "n_grad_programs",
        "n_l_bad",
        "n_a_programs",
        "n_b_programs",
        "n_dx_programs",
        "n_grad",
        "n_a",
        "n_b",
        "n_dx",
        "index",
    ]
)
def _backward_rows_kernel(
    grad_ptr, l_bad_ptr, a_ptr, b_ptr, dx_ptr, rows_ptr, n_grad_programs, n_l_bad, n_a_programs, n_b_programs,
    n_dx_programs, n_grad, n_a, n_b, n_dx, index, GROUP: tl.constexpr, HAS_DX: tl.constexpr,
):  # fmt: skip
    """Rows grad_out, lora_A.grad, lora_B.grad of projection `index`; with HAS_DX, on the last, grad_in."""
    grad_row = add_programs(grad_ptr, n_grad_programs)
    grad_bad = _n_bad(grad_row)
    store_row(grad_row, n_grad, rows_ptr + index * _N_FIELDS)
    bad = grad_bad
    for start in range(0, n_l_bad, BLOCK_P):
        offsets = start + tl.arange(0, BLOCK_P)
        bad += tl.sum(tl.load(l_bad_ptr + offsets, mask=offsets < n_l_bad, other=0.0))
    a_row_ptr = rows_ptr + (GROUP + 1 + index) * _N_FIELDS
    store_row(_after_product(add_programs(a_ptr, n_a_programs), bad), n_a, a_row_ptr)
    store_row(_after_product(add_programs(b_ptr, n_b_programs), bad), n_b, a_row_ptr + GROUP * _N_FIELDS)
    if HAS_DX:
        for earlier in tl.static_range(GROUP - 1):  # type: ignore[reportGeneralTypeIssues]
            earlier_ptr = rows_ptr + earlier * _N_FIELDS
            grad_bad += tl.load(earlier_ptr + _N_NAN) + tl.load(earlier_ptr + _N_INF)
        dx_row = _after_product(add_programs(dx_ptr, n_dx_programs), grad_bad)
        store_row(dx_row, n_dx, rows_ptr + GROUP * _N_FIELDS)
