"""All statistics of any tensor in one pass.

For the stored values x of a tensor and, where a kernel still holds it, the fp32 accumulator a behind them:

    sumsq        sum of x^2 over finite x
    absmax       max of |x| over finite x
    n_nan n_inf  counts in x
    n_overflow   a finite, x infinite                      (null without a)
    n_underflow  a not 0, x = 0                            (null without a)
    n_subnormal  0 < |x| < smallest normal of x's dtype    (null for fp32 unless `full`)
    n_zero       x = 0, of either sign                     (null for fp32 unless `full`)

Null is NaN, never 0. After a product of finite inputs every infinity is an overflow, accumulator or not.

The helpers of kernels that count what they hold are in tile_stats.py, the CPU and the reference in
tensor_stats_aten.py. Those, multi_tensor.py and exponents.py can be imported from here too.

Shapes: x any shape -> row float64 [9].
"""

import torch
import triton.language as tl

from ..backend import AotVariant, jit, on_device, runs_directly, uses_triton
from .exponents import exponent_histogram, exponent_histogram_reference, exponent_histogram_triton
from .multi_tensor import multi_tensor_stats, multi_tensor_stats_triton
from .reduce import FIELDS, N_FIELDS, N_PARTIALS, reduce_partials
from .tensor_stats_aten import (
    N_OVERFLOW,
    counts_small,
    round_with_stats_cpu,
    round_with_stats_reference,
    tensor_stats_aten,
    tensor_stats_cpu,
    tensor_stats_reference,
)
from .tile_stats import (
    BLOCK,
    FAST_DTYPES,
    NUM_WARPS,
    add_partials,
    flat,
    no_partials,
    split,
    tile_partials,
    write_partials,
)
from .tile_sums import flat_partials

__all__ = [
    "FIELDS",
    "N_FIELDS",
    "N_PARTIALS",
    "add_partials",
    "exponent_histogram",
    "exponent_histogram_reference",
    "exponent_histogram_triton",
    "multi_tensor_stats",
    "multi_tensor_stats_triton",
    "no_partials",
    "overflow_after_product",
    "round_with_stats_cpu",
    "round_with_stats_reference",
    "tensor_stats",
    "tensor_stats_aten",
    "tensor_stats_cpu",
    "tensor_stats_reference",
    "tensor_stats_triton",
    "tile_partials",
    "write_partials",
]

N_INF = FIELDS.index("n_inf")


@jit(do_not_specialize=["n", "tiles_per_program"])
def _stats_kernel(
    x_ptr, partials_ptr, n, tiles_per_program, ALIGNED: tl.constexpr, COUNT_SMALL: tl.constexpr, BLOCK: tl.constexpr
):
    """Each program reads `tiles_per_program` consecutive tiles of the flat tensor x [n]. ALIGNED: 16 divides n."""
    program = tl.program_id(0).to(tl.int64)
    if ALIGNED:
        n = n // 16 * 16  # what multiple_of says of an argument is not heard
    total = flat_partials(x_ptr, program * tiles_per_program, tiles_per_program, n, COUNT_SMALL, BLOCK)
    write_partials(partials_ptr, program, total)


def tensor_stats_triton(x: torch.Tensor, full: bool) -> torch.Tensor:
    """`tensor_stats` of an fp16, bf16 or fp32 tensor, in two launches."""
    aligned = x.ndim > 0 and x.shape[-1] % 16 == 0
    x = flat(x)
    n_programs, tiles_per_program = split(x.numel())
    partials = torch.empty((n_programs, N_PARTIALS), dtype=torch.float64, device=x.device)
    with on_device(x):
        _stats_kernel[(n_programs,)](
            x,
            partials,
            x.numel(),
            tiles_per_program,
            ALIGNED=aligned,
            COUNT_SMALL=counts_small(x.dtype, full),
            BLOCK=BLOCK,
            num_warps=NUM_WARPS,
            enable_fp_fusion=False,
        )
    return reduce_partials(partials, x.numel())


def _row_of(x: torch.Tensor, full: bool) -> torch.Tensor:
    if x.dtype not in FAST_DTYPES:
        return tensor_stats_reference(x, full)
    return tensor_stats_triton(x, full) if uses_triton(x) else tensor_stats_cpu(x, full)


_tensor_stats_op = torch.library.custom_op("lora_train::tensor_stats", _row_of, mutates_args=())


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
    # the dispatcher takes 80 us, more than 300,000 values do on a CPU
    row = (_row_of if runs_directly(x) else _tensor_stats_op)(x.detach(), full)
    return row if product_of_finite is None else overflow_after_product(row, product_of_finite)


def overflow_after_product(row: torch.Tensor, finite_inputs: torch.Tensor | bool) -> torch.Tensor:
    """A row whose `n_overflow` is `n_inf` where the inputs of the product were finite, and null elsewhere."""
    overflow = row[..., N_INF]
    if isinstance(finite_inputs, torch.Tensor):
        overflow = torch.where(finite_inputs, overflow, float("nan"))
    elif not finite_inputs:
        overflow = torch.full_like(overflow, float("nan"))
    return torch.cat([row[..., :N_OVERFLOW], overflow[..., None], row[..., N_OVERFLOW + 1 :]], dim=-1)


def aot_variants() -> list[AotVariant]:
    """What `benchmarks/compile_kernels.py` compiles ahead of time."""
    return [
        AotVariant(
            f"stats {dtype}",
            _stats_kernel,
            {"x_ptr": f"*{dtype}", "partials_ptr": "*fp64", "n": "i32", "tiles_per_program": "i32"},
            {"ALIGNED": True, "COUNT_SMALL": True, "BLOCK": BLOCK},
            ("x_ptr", "partials_ptr"),
            num_warps=NUM_WARPS,
        )
        for dtype in ("fp16", "bf16", "fp32")
    ]
