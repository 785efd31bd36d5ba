"""All statistics of any tensor in one pass, and the helpers with which other kernels count what they hold.

For the stored values x of a tensor and, where a kernel still holds it, the fp32 accumulator a behind them:

    sumsq        sum of x^2 over finite x
    absmax       max of |x| over finite x
    n_nan n_inf  counts in x
    n_overflow   a finite, x infinite                      (null without a)
    n_underflow  a not 0, x = 0                            (null without a)
    n_subnormal  0 < |x| < smallest normal of x's dtype    (null for fp32 unless `full`)
    n_zero       x = 0, of either sign                     (null for fp32 unless `full`)

Null is NaN, never 0. After a product of finite inputs every infinity is an overflow, accumulator or not.

A kernel that holds a tile calls `tile_partials`, adds tiles with `add_partials` if it loops, and ends with
`write_partials`; `reduce.write_row` or `reduce.reduce_partials` makes the row. Counts are int32 inside a
tile and float64 after it: exact integers. Sums of squares are fp32 inside a tile and float64 after it: the
relative error of a norm stays under 1e-6. A bf16 or fp32 tile is scaled by a power of two first, since its
squares may leave the fp32 range; squares of fp16 (2^-48 to 2^32) never do.

Shapes: x any shape -> row float64 [9]; many tensors -> rows float64 [T, 9]; histogram int64 [256].
"""

import functools
from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from . import cpu
from .backend import AotVariant, jit, uses_triton
from .reduce import FIELDS, N_FIELDS, N_PARTIALS, reduce_partials, reduce_ragged_partials

__all__ = [
    "FIELDS",
    "N_FIELDS",
    "N_PARTIALS",
    "add_partials",
    "exponent_histogram",
    "exponent_histogram_reference",
    "multi_tensor_stats",
    "no_partials",
    "overflow_after_product",
    "round_with_stats_cpu",
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
ATEN_BLOCK = 65536

FAST_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
N_INF = FIELDS.index("n_inf")
N_OVERFLOW = FIELDS.index("n_overflow")  # n_underflow follows it


@jit
def no_partials(ROUNDED: tl.constexpr, COUNT_SMALL: tl.constexpr):
    """Partials of nothing, the start of a loop over `add_partials`."""
    zero = tl.full((), 0.0, tl.float64)
    null = tl.full((), float("nan"), tl.float64)
    rounded = zero if ROUNDED else null
    small = zero if COUNT_SMALL else null
    return zero, zero, zero, zero, rounded, rounded, small, small


@jit
def _fp32_bits(x):
    """Bits of a tile as fp32. bf16 is the upper half of fp32; the interpreter's cast loses subnormals."""
    if x.dtype == tl.bfloat16:
        return x.to(tl.int16, bitcast=True).to(tl.int32) << 16
    else:
        return x.to(tl.float32).to(tl.int32, bitcast=True)


@jit
def _count_two(low, high):
    """Counts two boolean tiles in one reduction: a tile has at most 2^15 values, 16 bits each."""
    packed = tl.sum(low.to(tl.int32) + (high.to(tl.int32) << 16))
    n_low = packed & 0xFFFF  # type: ignore[reportOperatorIssue]
    n_high = (packed >> 16) & 0xFFFF  # type: ignore[reportOperatorIssue]
    return n_low.to(tl.float64), n_high.to(tl.float64)


@jit
def _sum_of_squares(magnitude, max_bits, STORED_FP16: tl.constexpr):
    """Sum of squares of a tile of finite magnitudes, float64; `max_bits` are the bits of the largest."""
    if STORED_FP16:
        return tl.sum(magnitude * magnitude).to(tl.float64)
    else:
        # Scaled by 2^(127 - e), e the exponent field of the largest, values are below 2, or 4 for e = 254.
        # Clamped so that both the scale and its inverse are normal numbers.
        exponent = tl.minimum(tl.maximum(max_bits >> 23, 1), 253)
        scale = ((254 - exponent) << 23).to(tl.float32, bitcast=True)
        inverse = (exponent << 23).to(tl.float32, bitcast=True).to(tl.float64)
        scaled = magnitude * scale
        return tl.sum(scaled * scaled).to(tl.float64) * inverse * inverse


@jit
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
    bits = tl.where(mask, _fp32_bits(stored) & _ABS_MASK, 0)
    is_inf = bits == _INF_BITS
    n_nan, n_inf = _count_two(bits > _INF_BITS, is_inf)

    finite_bits = tl.where(bits < _INF_BITS, bits, 0)
    max_bits = tl.max(finite_bits)
    magnitude = finite_bits.to(tl.float32, bitcast=True)
    sumsq = _sum_of_squares(magnitude, max_bits, stored.dtype == tl.float16)
    absmax = tl.cast(tl.cast(max_bits, tl.float32, bitcast=True), tl.float64)

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


@jit
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


@jit
def write_partials(partials_ptr, program, partials):
    """Stores eight scalars to row `program` (int64) of a float64 buffer [n_programs, 8]."""
    row_ptr = partials_ptr + program * _N_PARTIALS
    for i in tl.static_range(_N_PARTIALS):  # type: ignore[reportGeneralTypeIssues]
        tl.store(row_ptr + i, partials[i])


@jit(do_not_specialize=["tiles_per_program"])
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


@jit
def _multi_stats_kernel(
    address_ptr,
    tensor_ptr,
    first_ptr,
    n_ptr,
    partials_ptr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
    MAX_PROGRAMS: tl.constexpr,
):
    """`_stats_kernel` over many fp32 tensors: program p works on tensor[p], first[t] is t's first program."""
    program = tl.program_id(0).to(tl.int64)
    tensor = tl.load(tensor_ptr + program)
    n = tl.load(n_ptr + tensor)
    x_ptr = tl.load(address_ptr + tensor).to(tl.pointer_type(tl.float32))
    if ALIGNED:  # what the compiler knows of an argument by itself; a loaded value it must be told about
        x_ptr = tl.multiple_of(x_ptr, 16)
        n = tl.multiple_of(n, 4)
    tiles_per_program = tl.cdiv(tl.cdiv(n, BLOCK), MAX_PROGRAMS)
    start = (program - tl.load(first_ptr + tensor)) * tiles_per_program
    total = no_partials(False, False)
    for tile in range(tiles_per_program):
        offsets = (start + tile) * BLOCK + tl.arange(0, BLOCK)
        mask = offsets < n
        x = tl.load(x_ptr + offsets, mask=mask, other=0.0)
        total = add_partials(total, tile_partials(x, x, mask, False, False))
    write_partials(partials_ptr, program, total)


@jit(do_not_specialize=["tiles_per_program"])
def _histogram_kernel(x_ptr, counts_ptr, n, tiles_per_program, BLOCK: tl.constexpr, N_EXPONENTS: tl.constexpr):
    """Each program counts the fp32 exponent fields of its tiles into its row of int32 counts [P, 256]."""
    program = tl.program_id(0).to(tl.int64)
    counts = tl.zeros((N_EXPONENTS,), dtype=tl.int32)
    for tile in range(tiles_per_program):
        offsets = (program * tiles_per_program + tile) * BLOCK + tl.arange(0, BLOCK)
        mask = offsets < n
        bits = _fp32_bits(tl.load(x_ptr + offsets, mask=mask, other=0.0))
        counts += tl.histogram((bits >> 23) & 0xFF, N_EXPONENTS, mask=mask)
    tl.store(counts_ptr + program * N_EXPONENTS + tl.arange(0, N_EXPONENTS), counts)


def _flat(x: torch.Tensor) -> torch.Tensor:
    """The values of `x` in memory order, a view unless `x` has gaps or repeats."""
    return x.permute(sorted(range(x.ndim), key=x.stride, reverse=True)).reshape(-1)


def _split(n: int) -> tuple[int, int]:
    """Programs that share `n` values, and consecutive tiles for each."""
    tiles = max(1, triton.cdiv(n, BLOCK))
    tiles_per_program = triton.cdiv(tiles, MAX_PROGRAMS)
    return triton.cdiv(tiles, tiles_per_program), tiles_per_program


def _counts_small(dtype: torch.dtype, full: bool) -> bool:
    return full or dtype != torch.float32


def tensor_stats_triton(x: torch.Tensor, full: bool) -> torch.Tensor:
    """`tensor_stats` of an fp16, bf16 or fp32 tensor, in two launches."""
    x = _flat(x)
    n_programs, tiles_per_program = _split(x.numel())
    partials = torch.empty((n_programs, N_PARTIALS), dtype=torch.float64, device=x.device)
    _stats_kernel[(n_programs,)](
        x,
        partials,
        x.numel(),
        tiles_per_program,
        COUNT_SMALL=_counts_small(x.dtype, full),
        BLOCK=BLOCK,
        num_warps=NUM_WARPS,
        enable_fp_fusion=False,
    )
    return reduce_partials(partials, x.numel())


def tensor_stats_aten(x: torch.Tensor, full: bool) -> torch.Tensor:
    """`tensor_stats` on the CPU without a compiled extension, fp16, bf16 or fp32.

    Values and squares are finite and in the fp32 range almost always; one host-side look at the sum finds the
    tensors where they are not, and only those pay for float64.
    """
    x = _flat(x)
    values = x.float()
    sumsq = _sumsq_aten(values)
    if not 1e-25 < sumsq < 1e38:
        return tensor_stats_reference(x, full)
    low, high = torch.aminmax(values)
    row = torch.full((N_FIELDS,), float("nan"), dtype=torch.float64)
    row[0], row[1], row[2], row[3], row[-1] = sumsq, max(-low.item(), high.item()), 0, 0, x.numel()
    if _counts_small(x.dtype, full):
        n_zero = x.numel() - int(torch.count_nonzero(x))
        row[6] = int((values.abs() < torch.finfo(x.dtype).smallest_normal).sum()) - n_zero
        row[7] = n_zero
    return row


def _sumsq_aten(values: torch.Tensor) -> float:
    """Sum of squares of a flat fp32 tensor: fp32 pairwise in blocks that stay in cache, float64 beyond."""
    whole = values.numel() // ATEN_BLOCK * ATEN_BLOCK
    blocks = [*values[:whole].view(-1, ATEN_BLOCK), values[whole:]]
    square = torch.empty(ATEN_BLOCK)
    return sum(torch.mul(block, block, out=square[: block.numel()]).sum().item() for block in blocks)


def tensor_stats_cpu(x: torch.Tensor, full: bool) -> torch.Tensor:
    """`tensor_stats` of an fp16, bf16 or fp32 tensor on the CPU."""
    if cpu.AVAILABLE:
        return cpu.stats(_flat(x), _counts_small(x.dtype, full))
    return tensor_stats_aten(x, full)


def tensor_stats_reference(x: torch.Tensor, full: bool = True) -> torch.Tensor:
    """`tensor_stats` in plain PyTorch, float64, for any floating dtype, one pass per statistic.

    The square of an fp64 value may leave the fp64 range; `sumsq` is infinite then.
    """
    values = x.detach().double()
    magnitude = values.abs()
    finite = magnitude[magnitude.isfinite()]
    row = torch.full((N_FIELDS,), float("nan"), dtype=torch.float64, device=x.device)
    row[0] = finite.square().sum()
    row[1] = finite.amax() if finite.numel() else 0.0
    row[2] = values.isnan().sum()
    row[3] = values.isinf().sum()
    if _counts_small(x.dtype, full):
        smallest = torch.finfo(x.dtype).smallest_normal
        row[6] = ((magnitude > 0) & (magnitude < smallest)).sum()
        row[7] = (magnitude == 0).sum()
    row[8] = x.numel()
    return row


@torch.library.custom_op("lora_train::tensor_stats", mutates_args=())
def _tensor_stats_op(x: torch.Tensor, full: bool) -> torch.Tensor:
    if x.dtype not in FAST_DTYPES:
        return tensor_stats_reference(x, full)
    return tensor_stats_triton(x, full) if uses_triton(x) else tensor_stats_cpu(x, full)


@_tensor_stats_op.register_fake
def _(x: torch.Tensor, full: bool) -> torch.Tensor:
    return x.new_empty((N_FIELDS,), dtype=torch.float64)


def tensor_stats(
    x: torch.Tensor, *, full: bool = True, product_of_finite: torch.Tensor | bool | None = None
) -> torch.Tensor:
    """All statistics of a tensor in one pass; nothing waits for the device.

    Args:
        x: floating tensor of any shape and stride. fp16, bf16 and fp32 take the fast paths; other dtypes the
            reference, whose speed does not matter for the few tensors that have them.
        full: count subnormals and zeros of fp32 too. Those of other dtypes are always counted.
        product_of_finite: given if `x` is the stored result of a matrix product: True, or a bool tensor [],
            where the inputs were finite. Every infinity is an overflow then; null where they were not.

    Returns:
        float64 [9] in the order of FIELDS, on the device of `x`; NaN in a count is null.
    """
    row = _tensor_stats_op(x.detach(), full)
    return row if product_of_finite is None else overflow_after_product(row, product_of_finite)


def overflow_after_product(row: torch.Tensor, finite_inputs: torch.Tensor | bool) -> torch.Tensor:
    """A row whose `n_overflow` is `n_inf` where the inputs of the product were finite, and null elsewhere."""
    finite = torch.as_tensor(finite_inputs, device=row.device)
    overflow = torch.where(finite, row[..., N_INF], float("nan"))
    return torch.cat([row[..., :N_OVERFLOW], overflow[..., None], row[..., N_OVERFLOW + 1 :]], dim=-1)


def round_with_stats_cpu(acc: torch.Tensor, dtype: torch.dtype, full: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """Rounds a CPU accumulator to the stored dtype and counts what that did to it, in one pass.

    Args:
        acc: fp32, any shape.
        dtype: fp16, bf16 or fp32; fp32 returns `acc` itself, and nothing overflows or underflows.
        full: count subnormals and zeros if `dtype` is fp32.

    Returns:
        The stored tensor, contiguous, and its row with overflow and underflow.
    """
    if dtype == torch.float32:
        row = tensor_stats_cpu(acc, full)
        row[N_OVERFLOW : N_OVERFLOW + 2] = 0
        return acc, row
    acc = acc.contiguous()
    if not cpu.AVAILABLE:
        stored = acc.to(dtype)
        return stored, _rounded_row(tensor_stats_aten(stored, full), acc, stored)
    stored = torch.empty_like(acc, dtype=dtype)
    return stored, cpu.round_with_stats(acc, stored)


def round_with_stats_reference(acc: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """`round_with_stats_cpu` in plain PyTorch."""
    stored = acc.to(dtype)
    return stored, _rounded_row(tensor_stats_reference(stored), acc, stored)


def _rounded_row(row: torch.Tensor, acc: torch.Tensor, stored: torch.Tensor) -> torch.Tensor:
    row[N_OVERFLOW] = (acc.isfinite() & stored.isinf()).sum()
    row[N_OVERFLOW + 1] = ((acc != 0) & (stored == 0)).sum()
    return row


@functools.lru_cache(maxsize=16)
def _shares(sizes: tuple[int, ...], device: torch.device) -> tuple[int, torch.Tensor, torch.Tensor, torch.Tensor]:
    """How programs share tensors of these sizes: their number P, tensor [P], first [T + 1] and n [T].

    LoRA's sizes never change, so this is built once a run.
    """
    programs = torch.tensor([_split(n)[0] for n in sizes])
    tensor = torch.repeat_interleave(torch.arange(len(sizes)), programs)
    first = torch.nn.functional.pad(programs.cumsum(0), (1, 0))
    tables = [_upload(table, device) for table in (tensor, first, torch.tensor(sizes))]
    return tensor.numel(), tables[0], tables[1], tables[2]


def _upload(table: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copies to the device without waiting, from pinned memory that torch keeps until the copy is over."""
    return table.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else table


def multi_tensor_stats(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Statistics of many contiguous fp32 tensors, such as all LoRA gradients, in two launches and no waiting.

    Overflow, underflow, subnormals and zeros are null. Column 0, `sumsq`, gives the norms of the tensors and,
    summed, the norm that clipping needs.

    Returns:
        float64 [T, 9] on the device of the tensors, which must be one.

    Raises:
        ValueError: a tensor is not fp32 or not contiguous.
    """
    for i, x in enumerate(tensors):
        if x.dtype != torch.float32 or not x.is_contiguous():
            raise ValueError(f"tensor {i} is {x.dtype} with strides {x.stride()}; want contiguous fp32")
    if not tensors:
        return torch.empty((0, N_FIELDS), dtype=torch.float64)
    if not uses_triton(tensors[0]):
        return torch.stack([tensor_stats_cpu(x.detach(), False) for x in tensors])
    return multi_tensor_stats_triton(tensors)


def multi_tensor_stats_triton(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """`multi_tensor_stats` on the device; stream order keeps the tensors alive until the kernel has run."""
    device = tensors[0].device
    n_programs, tensor, first, n = _shares(tuple(x.numel() for x in tensors), device)
    addresses = torch.tensor([x.data_ptr() for x in tensors])
    partials = torch.empty((n_programs, N_PARTIALS), dtype=torch.float64, device=device)
    _multi_stats_kernel[(n_programs,)](
        _upload(addresses, device),
        tensor,
        first,
        n,
        partials,
        ALIGNED=all(x.data_ptr() % 16 == 0 and x.numel() % 4 == 0 for x in tensors),
        BLOCK=BLOCK,
        MAX_PROGRAMS=MAX_PROGRAMS,
        num_warps=NUM_WARPS,
        enable_fp_fusion=False,
    )
    return reduce_ragged_partials(partials, first, n)


def exponent_histogram(x: torch.Tensor) -> torch.Tensor:
    """Counts of binary exponents: entry e counts the values whose exponent field as fp32 is e.

    e = 0 holds zeros (and fp32 or bf16 subnormals), 1 to 254 magnitudes in [2^(e-127), 2^(e-126)), 255 Inf
    and NaN. The subnormals of fp16 are at 103 to 112.

    Returns:
        int64 [256] on the device of `x`.
    """
    x = x.detach()
    if x.dtype not in FAST_DTYPES:
        return exponent_histogram_reference(x)
    if uses_triton(x):
        return exponent_histogram_triton(x)
    return cpu.exponents(_flat(x)) if cpu.AVAILABLE else exponent_histogram_reference(x)


def exponent_histogram_triton(x: torch.Tensor) -> torch.Tensor:
    """`exponent_histogram` in one launch and one integer sum."""
    x = _flat(x)
    n_programs, tiles_per_program = _split(x.numel())
    counts = torch.empty((n_programs, N_EXPONENTS), dtype=torch.int32, device=x.device)
    _histogram_kernel[(n_programs,)](
        x,
        counts,
        x.numel(),
        tiles_per_program,
        BLOCK=BLOCK,
        N_EXPONENTS=N_EXPONENTS,
        num_warps=NUM_WARPS,
        enable_fp_fusion=False,
    )
    return counts.sum(0, dtype=torch.int64)


def exponent_histogram_reference(x: torch.Tensor) -> torch.Tensor:
    """`exponent_histogram` in plain PyTorch. `x` is rounded to fp32 first."""
    exponents = (x.float().reshape(-1).view(torch.int32) >> 23) & 0xFF
    return torch.bincount(exponents.long(), minlength=N_EXPONENTS)


def aot_variants() -> list[AotVariant]:
    """What `benchmarks/compile_kernels.py` compiles ahead of time."""
    variants = [
        AotVariant(
            f"stats {dtype}",
            _stats_kernel,
            {"x_ptr": f"*{dtype}", "partials_ptr": "*fp64", "n": "i32", "tiles_per_program": "i32"},
            {"COUNT_SMALL": True, "BLOCK": BLOCK},
            ("x_ptr", "partials_ptr", "n"),
            num_warps=NUM_WARPS,
        )
        for dtype in ("fp16", "bf16", "fp32")
    ]
    multi = {
        "address_ptr": "*i64",
        "tensor_ptr": "*i64",
        "first_ptr": "*i64",
        "n_ptr": "*i64",
        "partials_ptr": "*fp64",
    }
    variants.append(
        AotVariant(
            "multi-tensor stats",
            _multi_stats_kernel,
            multi,
            {"ALIGNED": True, "BLOCK": BLOCK, "MAX_PROGRAMS": MAX_PROGRAMS},
            tuple(multi),
            num_warps=NUM_WARPS,
        )
    )
    variants.append(
        AotVariant(
            "exponent histogram fp16",
            _histogram_kernel,
            {"x_ptr": "*fp16", "counts_ptr": "*i32", "n": "i32", "tiles_per_program": "i32"},
            {"BLOCK": BLOCK, "N_EXPONENTS": N_EXPONENTS},
            ("x_ptr", "counts_ptr", "n"),
            num_warps=NUM_WARPS,
        )
    )
    return variants
