"""Triton kernels of RMSNorm and LayerNorm with frozen weights: rows of x [M, K], one launch each way.

    z  = x - mean(x)             or x itself for RMSNorm
    y  = z rstd (w + offset) + b,  rstd = 1 / sqrt(mean(z^2) + eps)
    g  = (w + offset) dy,  n = z rstd
    dx = rstd (g - n mean(g n) - mean(g))       without mean(g) for RMSNorm

A program has ROWS rows. A row of at most MAX_BLOCK columns stays in registers; a longer one is read again, block by
block. Formulas and arguments: rms_norm.py and layer_norm.py.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backend import AotVariant, cdiv, jit, on_device
from ..statistics.rounding import new_partials, rows_of, share
from ..statistics.tile_stats import add_partials, no_partials, tile_partials, write_partials

MAX_BLOCK = 8192
"""Columns of a row kept in registers; backward keeps two values of each."""

LOOP_BLOCK = 4096
"""Columns at a time of a longer row."""

TILE = 2048
"""Values of a program whose rows are short."""


@jit
def _read(x_ptr, rows, cols, n_rows, n_cols):
    """A tile of x in fp32, zero outside."""
    mask = (rows < n_rows)[:, None] & (cols < n_cols)[None, :]
    return tl.load(x_ptr + rows[:, None] * n_cols + cols[None, :], mask=mask, other=0.0).to(tl.float32)


@jit
def _read_weight(weight_ptr, cols, n_cols):
    return tl.load(weight_ptr + cols, mask=cols < n_cols, other=0.0).to(tl.float32)[None, :]


@jit
def _centred(x, mean, cols, n_cols):
    """x - mean, zero outside."""
    return tl.where((cols < n_cols)[None, :], x - mean[:, None], 0.0)


@jit
def _count(total, acc, stored, rows, cols, n_rows, n_cols):
    mask = (rows < n_rows)[:, None] & (cols < n_cols)[None, :]
    return add_partials(total, tile_partials(acc, stored, mask, True, stored.dtype != tl.float32))


@jit(do_not_specialize=["n_rows", "tiles_per_program"])
def _norm_kernel(
    x_ptr, weight_ptr, bias_ptr, y_ptr, mean_ptr, rstd_ptr, partials_ptr,
    n_rows, n_cols, tiles_per_program, eps, offset, ROWS: tl.constexpr, BLOCK: tl.constexpr, N_BLOCKS: tl.constexpr,
):  # fmt: skip
    """LayerNorm if there is a mean to store, else RMSNorm."""
    program = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    if partials_ptr is not None:
        total = no_partials(True, y_ptr.dtype.element_ty != tl.float32)
    for tile in range(tiles_per_program):
        rows = (program * tiles_per_program + tile) * ROWS + tl.arange(0, ROWS)
        if N_BLOCKS == 1:
            x = _read(x_ptr, rows, columns, n_rows, n_cols)
        if mean_ptr is not None:
            sums = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
            for start in range(0, N_BLOCKS * BLOCK, BLOCK):
                sums += x if N_BLOCKS == 1 else _read(x_ptr, rows, start + columns, n_rows, n_cols)
            mean = tl.sum(sums, axis=1) / n_cols
            tl.store(mean_ptr + rows, mean, mask=rows < n_rows)
        else:
            mean = tl.zeros((ROWS,), dtype=tl.float32)
        squares = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
        for start in range(0, N_BLOCKS * BLOCK, BLOCK):
            cols = start + columns
            z = _centred(x if N_BLOCKS == 1 else _read(x_ptr, rows, cols, n_rows, n_cols), mean, cols, n_cols)
            squares += z * z
        rstd = tl.rsqrt(tl.sum(squares, axis=1) / n_cols + eps)
        tl.store(rstd_ptr + rows, rstd, mask=rows < n_rows)
        for start in range(0, N_BLOCKS * BLOCK, BLOCK):
            cols = start + columns
            z = _centred(x if N_BLOCKS == 1 else _read(x_ptr, rows, cols, n_rows, n_cols), mean, cols, n_cols)
            acc = z * rstd[:, None] * (_read_weight(weight_ptr, cols, n_cols) + offset)
            if bias_ptr is not None:
                acc += _read_weight(bias_ptr, cols, n_cols)
            y = acc.to(y_ptr.dtype.element_ty)
            mask = (rows < n_rows)[:, None] & (cols < n_cols)[None, :]
            tl.store(y_ptr + rows[:, None] * n_cols + cols[None, :], y, mask=mask)
            if partials_ptr is not None:
                total = _count(total, acc, y, rows, cols, n_rows, n_cols)
    if partials_ptr is not None:
        write_partials(partials_ptr, program, total)


@jit
def _normal_and_grad(dy_ptr, x_ptr, weight_ptr, mean, rstd, rows, cols, n_rows, n_cols, offset):
    """n and g of a tile, zero outside."""
    z = _centred(_read(x_ptr, rows, cols, n_rows, n_cols), mean, cols, n_cols)
    g = _read(dy_ptr, rows, cols, n_rows, n_cols) * (_read_weight(weight_ptr, cols, n_cols) + offset)
    return z * rstd[:, None], g


@jit(do_not_specialize=["n_rows", "tiles_per_program"])
def _norm_backward_kernel(
    dy_ptr, x_ptr, weight_ptr, mean_ptr, rstd_ptr, dx_ptr, partials_ptr,
    n_rows, n_cols, tiles_per_program, offset, ROWS: tl.constexpr, BLOCK: tl.constexpr, N_BLOCKS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    if partials_ptr is not None:
        total = no_partials(True, dx_ptr.dtype.element_ty != tl.float32)
    for tile in range(tiles_per_program):
        rows = (program * tiles_per_program + tile) * ROWS + tl.arange(0, ROWS)
        rstd = tl.load(rstd_ptr + rows, mask=rows < n_rows, other=0.0)
        if mean_ptr is not None:
            mean = tl.load(mean_ptr + rows, mask=rows < n_rows, other=0.0)
        else:
            mean = tl.zeros((ROWS,), dtype=tl.float32)
        if N_BLOCKS == 1:
            n, g = _normal_and_grad(dy_ptr, x_ptr, weight_ptr, mean, rstd, rows, columns, n_rows, n_cols, offset)
        products = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
        sums = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
        for start in range(0, N_BLOCKS * BLOCK, BLOCK):
            if N_BLOCKS > 1:
                n, g = _normal_and_grad(
                    dy_ptr, x_ptr, weight_ptr, mean, rstd, rows, start + columns, n_rows, n_cols, offset
                )
            products += g * n  # type: ignore[reportOperatorIssue]
            if mean_ptr is not None:
                sums += g
        along = tl.sum(products, axis=1) / n_cols
        level = tl.sum(sums, axis=1) / n_cols
        for start in range(0, N_BLOCKS * BLOCK, BLOCK):
            cols = start + columns
            if N_BLOCKS > 1:
                n, g = _normal_and_grad(dy_ptr, x_ptr, weight_ptr, mean, rstd, rows, cols, n_rows, n_cols, offset)
            acc = g - n * along[:, None]
            if mean_ptr is not None:
                acc -= level[:, None]
            acc *= rstd[:, None]
            dx = acc.to(dx_ptr.dtype.element_ty)
            mask = (rows < n_rows)[:, None] & (cols < n_cols)[None, :]
            tl.store(dx_ptr + rows[:, None] * n_cols + cols[None, :], dx, mask=mask)
            if partials_ptr is not None:
                total = _count(total, acc, dx, rows, cols, n_rows, n_cols)
    if partials_ptr is not None:
        write_partials(partials_ptr, program, total)


def _tile_for(n_cols: int, counted: bool) -> tuple[dict[str, int], int]:
    """ROWS, BLOCK and N_BLOCKS for rows of this width, and warps: 16 values per thread, or 32, because with 16 warps
    a counting thread has too few registers on sm_75.
    """
    block = triton.next_power_of_2(max(1, n_cols))
    if block > MAX_BLOCK:
        block = LOOP_BLOCK
    tile = {"ROWS": max(1, TILE // block), "BLOCK": block, "N_BLOCKS": max(1, cdiv(n_cols, block))}
    return tile, max(4, block // (1024 if counted else 512))


class Norm(NamedTuple):
    """w + offset, b, eps; `centred` for LayerNorm."""

    weight: Tensor
    bias: Tensor | None = None
    eps: float = 0.0
    offset: float = 0.0
    centred: bool = False


def norm(x: Tensor, how: Norm, dtype: torch.dtype, counted: bool) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """y in `dtype` in the shape of x, rows [1, 9] or [0, 9], mean (None unless centred) and rstd, fp32 [M]."""
    weight, bias, eps, offset, centred = how
    n_cols = x.shape[-1]
    n_rows = x.numel() // max(1, n_cols)
    x, y = x.contiguous(), x.new_empty(x.shape, dtype=dtype)
    rstd = x.new_empty(n_rows, dtype=torch.float32)
    mean = torch.empty_like(rstd) if centred else None
    tile, num_warps = _tile_for(n_cols, counted)
    programs, tiles_per_program = share(cdiv(n_rows, tile["ROWS"]), counted)
    partials = new_partials(x, 1, programs, counted)
    if x.numel():
        with on_device(x):
            _norm_kernel[(programs,)](
                x, weight.contiguous(), bias if bias is None else bias.contiguous(), y, mean, rstd, partials,
                n_rows, n_cols, tiles_per_program, eps, offset, **tile, num_warps=num_warps, enable_fp_fusion=False,
            )  # fmt: skip
    return y, rows_of(y, partials), mean, rstd


def norm_backward(
    dy: Tensor, x: Tensor, how: Norm, mean: Tensor | None, rstd: Tensor, counted: bool
) -> tuple[Tensor, Tensor]:
    """Rows [1, 9] or [0, 9], and dx in the shape and dtype of x; bias and eps are not looked at."""
    weight, offset = how.weight, how.offset
    n_cols = x.shape[-1]
    n_rows = x.numel() // max(1, n_cols)
    dy, x, dx = dy.contiguous(), x.contiguous(), x.new_empty(x.shape)
    tile, num_warps = _tile_for(n_cols, counted)
    programs, tiles_per_program = share(cdiv(n_rows, tile["ROWS"]), counted)
    partials = new_partials(x, 1, programs, counted)
    if x.numel():
        with on_device(x):
            _norm_backward_kernel[(programs,)](
                dy, x, weight.contiguous(), mean, rstd, dx, partials,
                n_rows, n_cols, tiles_per_program, offset, **tile, num_warps=num_warps, enable_fp_fusion=False,
            )  # fmt: skip
    return rows_of(dx, partials), dx


def aot_variants() -> list[AotVariant]:
    """What `benchmarks/compile_kernels.py` compiles ahead of time: the widest rows in registers, counted in 16 bits;
    longer rows in blocks; and LayerNorm as CUDA's autocast wants it, from 16 bits to fp32.
    """
    kinds = [("fp16", "fp16", MAX_BLOCK), ("bf16", "bf16", 4 * LOOP_BLOCK), ("fp32", "fp32", MAX_BLOCK)]
    variants = []
    for name, centred in (("rms norm", False), ("layer norm", True)):
        for x, y, n_cols in [*kinds, *([("fp16", "fp32", MAX_BLOCK)] if centred else [])]:
            tile, num_warps = _tile_for(n_cols, y != "fp32")
            pointers = {"x_ptr": f"*{x}", "weight_ptr": f"*{x}", "rstd_ptr": "*fp32"}
            absent: dict[str, None] = {}
            for pointer, dtype, there in (("mean_ptr", "fp32", centred), ("partials_ptr", "fp64", y != "fp32")):
                if there:
                    pointers[pointer] = f"*{dtype}"
                else:
                    absent[pointer] = None
            sizes = {"n_rows": "i32", "n_cols": "i32", "tiles_per_program": "i32", "offset": "fp32"}
            bias = {"bias_ptr": f"*{x}"} if centred else {}
            what = f"{x}" if x == y else f"{x} {y}"
            forward = {**pointers, **bias, "y_ptr": f"*{y}", **sizes, "eps": "fp32"}
            backward = {**pointers, "dy_ptr": f"*{y}", "dx_ptr": f"*{x}", **sizes}
            for title, kernel, signature in (
                (f"{name} {what}", _norm_kernel, forward),
                (f"{name} backward {what}", _norm_backward_kernel, backward),
            ):
                constants = {**tile, **absent, **({} if centred or kernel is not _norm_kernel else {"bias_ptr": None})}
                aligned = (*(argument for argument in signature if argument.endswith("_ptr")), "n_cols")
                variants.append(AotVariant(title, kernel, signature, constants, aligned, num_warps=num_warps))
    return variants
