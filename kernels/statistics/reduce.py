"""Second stage of every statistic: per-program partials to one row, in a fixed order.

A *row* is a float64 tensor [9], in the order of `FIELDS`. A *partial* is what one program of some kernel
found in its share of a tensor: float64 [8], the same fields without `n`, which the host knows.

    row[f] = sum over programs of partials[:, f]      (absmax: the maximum)

Counts are integers below 2**53 and so exact in float64. NaN in a count means "not known" and survives the
sum: a row never shows 0 for something nobody counted. The order of additions depends on the number of
programs alone, so the same run gives the same bits twice; there are no float atomics.

Shapes: partials [..., P, 8] -> rows [..., 9].
"""

import torch
import triton.language as tl

from ..backend import AotVariant, jit, on_device, uses_triton

FIELDS = ("sumsq", "absmax", "n_nan", "n_inf", "n_overflow", "n_underflow", "n_subnormal", "n_zero", "n")
N_FIELDS = len(FIELDS)
N_PARTIALS = N_FIELDS - 1
ABSMAX = FIELDS.index("absmax")

_N_PARTIALS = tl.constexpr(N_PARTIALS)
_N_FIELDS = tl.constexpr(N_FIELDS)
_ABSMAX = tl.constexpr(ABSMAX)

# Partials added per iteration. 128 x 8 doubles are 8 per thread at 4 warps; a large launch has 1024 partials.
BLOCK_P = tl.constexpr(128)


@jit
def add_programs(partials_ptr, n_programs):
    """Adds partials [n_programs, 8] to a vector [8], kept in registers; any one program of a kernel may."""
    columns = tl.arange(0, _N_PARTIALS)
    sums = tl.zeros((BLOCK_P, _N_PARTIALS), dtype=tl.float64)
    for start in range(0, n_programs, BLOCK_P):
        programs = start + tl.arange(0, BLOCK_P).to(tl.int64)
        pointers = partials_ptr + programs[:, None] * _N_PARTIALS + columns[None, :]
        values = tl.load(pointers, mask=(programs < n_programs)[:, None], other=0.0)
        sums = tl.where(columns[None, :] == _ABSMAX, tl.maximum(sums, values), sums + values)
    return tl.where(columns == _ABSMAX, tl.max(sums, axis=0), tl.sum(sums, axis=0))


@jit
def store_row(fields, n, row_ptr):
    """Stores a vector [8] and `n` as a row."""
    tl.store(row_ptr + tl.arange(0, _N_PARTIALS), fields)
    tl.store(row_ptr + _N_PARTIALS, tl.full((), n, tl.float64))


@jit
def write_row(partials_ptr, n_programs, n, row_ptr):
    """Adds partials [n_programs, 8] of `n` values and stores the row."""
    store_row(add_programs(partials_ptr, n_programs), n, row_ptr)


@jit(do_not_specialize=["n_programs", "n"])
def _rows_kernel(partials_ptr, rows_ptr, n_programs, n):
    """One program per row; every row has `n_programs` partials and `n` elements."""
    row = tl.program_id(0).to(tl.int64)
    write_row(partials_ptr + row * n_programs * _N_PARTIALS, n_programs, n, rows_ptr + row * _N_FIELDS)


@jit
def _ragged_rows_kernel(partials_ptr, rows_ptr, first_ptr, n_ptr):
    """One program per row; row t owns the partials first[t] .. first[t+1] and n[t] elements."""
    row = tl.program_id(0).to(tl.int64)
    first = tl.load(first_ptr + row)
    n_programs = tl.load(first_ptr + row + 1) - first
    write_row(partials_ptr + first * _N_PARTIALS, n_programs, tl.load(n_ptr + row), rows_ptr + row * _N_FIELDS)


def reduce_partials(partials: torch.Tensor, n: int) -> torch.Tensor:
    """Adds partials to rows.

    Args:
        partials: float64 [..., P, 8], contiguous. P = 0 gives a row of zeros.
        n: elements behind each row.

    Returns:
        float64 [..., 9].
    """
    if not uses_triton(partials):
        return reduce_partials_cpu(partials, n)
    rows = partials.new_empty((*partials.shape[:-2], N_FIELDS))
    if rows.numel():
        grid = (rows.numel() // N_FIELDS,)
        with on_device(rows):
            _rows_kernel[grid](partials, rows, partials.shape[-2], n, num_warps=4, enable_fp_fusion=False)
    return rows


def reduce_ragged_partials(partials: torch.Tensor, first: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
    """Adds partials of many tensors at once, on the device that holds them.

    Args:
        partials: float64 [P, 8], contiguous.
        first: int64 [T + 1]; row t owns partials first[t] to first[t + 1] - 1.
        n: int64 [T], elements behind each row.

    Returns:
        float64 [T, 9].
    """
    rows = partials.new_empty((n.numel(), N_FIELDS))
    if rows.numel():
        with on_device(rows):
            _ragged_rows_kernel[(n.numel(),)](partials, rows, first, n, num_warps=4, enable_fp_fusion=False)
    return rows


def reduce_partials_cpu(partials: torch.Tensor, n: int) -> torch.Tensor:
    """`reduce_partials` in ATen: P is small wherever the CPU calls it."""
    if partials.shape[-2] == 0:
        rows = partials.new_zeros((*partials.shape[:-2], N_FIELDS))
    else:
        rows = torch.nn.functional.pad(partials.sum(-2), (0, 1))
        rows[..., ABSMAX] = partials[..., ABSMAX].amax(-1)
    rows[..., -1] = n
    return rows


def reduce_partials_reference(partials: torch.Tensor, n: int) -> torch.Tensor:
    """`reduce_partials` as a loop."""
    rows = torch.zeros((*partials.shape[:-2], N_FIELDS), dtype=torch.float64)
    for program in range(partials.shape[-2]):
        found = partials[..., program, :]
        absmax = torch.maximum(rows[..., ABSMAX], found[..., ABSMAX])
        rows[..., :N_PARTIALS] += found
        rows[..., ABSMAX] = absmax
    rows[..., -1] = n
    return rows


def aot_variants() -> list[AotVariant]:
    """What `benchmarks/compile_kernels.py` compiles ahead of time."""
    rows = {"partials_ptr": "*fp64", "rows_ptr": "*fp64", "n_programs": "i32", "n": "i32"}
    ragged = {"partials_ptr": "*fp64", "rows_ptr": "*fp64", "first_ptr": "*i64", "n_ptr": "*i64"}
    return [
        AotVariant("reduce rows", _rows_kernel, rows, {}, ("partials_ptr", "rows_ptr")),
        AotVariant("reduce ragged rows", _ragged_rows_kernel, ragged, {}, tuple(ragged)),
    ]
