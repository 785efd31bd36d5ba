"""Histogram of the binary exponents of a tensor.

    counts[e] = number of values whose exponent field as fp32 is e

e = 0 holds zeros (and fp32 or bf16 subnormals), 1 to 254 magnitudes in [2^(e-127), 2^(e-126)), 255 Inf and NaN. The
subnormals of fp16 are at 103 to 112.

Shapes: x any shape -> counts int64 [256].
"""

import torch
import triton.language as tl

from .. import cpu
from ..backend import AotVariant, jit, on_device, uses_triton
from .tile_stats import BLOCK, FAST_DTYPES, NUM_WARPS, flat, fp32_bits, split

N_EXPONENTS = 256


@jit(do_not_specialize=["n", "tiles_per_program"])
def _histogram_kernel(
    x_ptr, counts_ptr, n, tiles_per_program,
    ALIGNED: tl.constexpr, BLOCK: tl.constexpr, N_EXPONENTS: tl.constexpr,
):  # fmt: skip
    """Each program counts the fp32 exponent fields of its tiles into its row of int32 counts [P, 256].

    ALIGNED: 16 divides n.
    """
    program = tl.program_id(0).to(tl.int64)
    if ALIGNED:
        n = n // 16 * 16  # what multiple_of says of an argument is not heard
    counts = tl.zeros((N_EXPONENTS,), dtype=tl.int32)
    for tile in range(tiles_per_program):
        offsets = (program * tiles_per_program + tile) * BLOCK + tl.arange(0, BLOCK)
        mask = offsets < n
        bits = fp32_bits(tl.load(x_ptr + offsets, mask=mask, other=0.0))
        counts += tl.histogram((bits >> 23) & 0xFF, N_EXPONENTS, mask=mask)
    tl.store(counts_ptr + program * N_EXPONENTS + tl.arange(0, N_EXPONENTS), counts)


def exponent_histogram(x: torch.Tensor) -> torch.Tensor:
    """Counts of binary exponents; which is which is at the head of this file.

    Returns:
        int64 [256] on the device of `x`.
    """
    x = x.detach()
    if x.dtype not in FAST_DTYPES:
        return exponent_histogram_reference(x)
    if uses_triton(x):
        return exponent_histogram_triton(x)
    return cpu.exponents(flat(x)) if cpu.AVAILABLE else exponent_histogram_reference(x)


def exponent_histogram_triton(x: torch.Tensor) -> torch.Tensor:
    """`exponent_histogram` in one launch and one integer sum."""
    aligned = x.ndim > 0 and x.shape[-1] % 16 == 0
    x = flat(x)
    n_programs, tiles_per_program = split(x.numel())
    counts = torch.empty((n_programs, N_EXPONENTS), dtype=torch.int32, device=x.device)
    with on_device(x):
        _histogram_kernel[(n_programs,)](
            x,
            counts,
            x.numel(),
            tiles_per_program,
            ALIGNED=aligned,
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
    signature = {"x_ptr": "*fp16", "counts_ptr": "*i32", "n": "i32", "tiles_per_program": "i32"}
    constexprs = {"ALIGNED": True, "BLOCK": BLOCK, "N_EXPONENTS": N_EXPONENTS}
    aligned = ("x_ptr", "counts_ptr")
    variant = AotVariant(
        "exponent histogram fp16", _histogram_kernel, signature, constexprs, aligned, num_warps=NUM_WARPS
    )
    return [variant]
