"""Triton kernel of the rotation in rotary.py, and with the sines' signs exchanged of the one that takes it back.

A program turns ROWS heads, of one token or several; those of one token read the same angles.
"""

import triton
import triton.language as tl
from torch import Tensor

from ..backend import AotVariant, cdiv, jit, on_device
from ..statistics.rounding import new_partials, rows_of, share
from ..statistics.tile_stats import add_partials, no_partials, tile_partials, write_partials

TILE = 1024
"""Pairs at a time: 8 per thread."""

NUM_WARPS = 4
ALIGNED = 16


@jit
def _count(total, acc, stored, mask):
    return add_partials(total, tile_partials(acc, stored, mask, True, stored.dtype != tl.float32))


@jit
def _angles(ptr, offsets, mask):
    return tl.load(ptr + offsets, mask=mask, other=0.0).to(tl.float32)


@jit(
    do_not_specialize=[
        "n_rows", "n_positions", "batch_stride", "head_stride", "position_stride", "angle_rows", "tiles_per_program",
    ]
)  # fmt: skip
def _rotary_kernel(
    x_ptr, cos_ptr, sin_ptr, y_ptr, partials_ptr,
    n_rows, n_positions, batch_stride, head_stride, position_stride, angle_rows, tiles_per_program, n_cols, half,
    BACK: tl.constexpr, UNIT: tl.constexpr, HEADS: tl.constexpr,
    ROWS: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """x by strides in UNITs of values: they depend on the number of tokens and so are not specialised, and the compiler
    still sees that rows are aligned. y [B, S, HEADS, D], dense.

    Args:
        n_rows: tokens times heads.
        angle_rows: rows between the angles of two batches, 0 if they have the same.
        half: R / 2; HALF at least as much, REST at least D - R, 0 if that is.
    """
    program = tl.program_id(0)
    cols, rest = tl.arange(0, HALF)[None, :], tl.arange(0, REST if REST else 1)[None, :]
    if partials_ptr is not None:
        total = no_partials(True, y_ptr.dtype.element_ty != tl.float32)
    for tile in range(tiles_per_program):
        rows = (program * tiles_per_program + tile) * ROWS + tl.arange(0, ROWS)[:, None]
        tokens, heads = rows // HEADS, (rows % HEADS).to(tl.int64)
        batch, position = (tokens // n_positions).to(tl.int64), (tokens % n_positions).to(tl.int64)
        x_row = (batch * batch_stride + position * position_stride + heads * head_stride) * UNIT
        y_row = rows.to(tl.int64) * n_cols
        mask = (rows < n_rows) & (cols < half)
        low = tl.load(x_ptr + x_row + cols, mask=mask, other=0.0).to(tl.float32)
        high = tl.load(x_ptr + x_row + half + cols, mask=mask, other=0.0).to(tl.float32)
        angle = (batch * angle_rows + position) * (2 * half) + cols
        cos_low, cos_high = _angles(cos_ptr, angle, mask), _angles(cos_ptr, angle + half, mask)
        sin_low, sin_high = _angles(sin_ptr, angle, mask), _angles(sin_ptr, angle + half, mask)
        if BACK:
            acc_low, acc_high = low * cos_low + high * sin_high, high * cos_high - low * sin_low
        else:
            acc_low, acc_high = low * cos_low - high * sin_low, high * cos_high + low * sin_high
        y_low, y_high = acc_low.to(y_ptr.dtype.element_ty), acc_high.to(y_ptr.dtype.element_ty)
        tl.store(y_ptr + y_row + cols, y_low, mask=mask)
        tl.store(y_ptr + y_row + half + cols, y_high, mask=mask)
        if partials_ptr is not None:
            total = _count(_count(total, acc_low, y_low, mask), acc_high, y_high, mask)
        if REST:
            mask = (rows < n_rows) & (2 * half + rest < n_cols)
            kept = tl.load(x_ptr + x_row + 2 * half + rest, mask=mask, other=0.0)
            tl.store(y_ptr + y_row + 2 * half + rest, kept, mask=mask)
            if partials_ptr is not None:
                total = _count(total, kept.to(tl.float32), kept, mask)
    if partials_ptr is not None:
        write_partials(partials_ptr, program.to(tl.int64), total)


def _tile_for(n_heads: int, n_cols: int, half: int) -> dict[str, int]:
    block = triton.next_power_of_2(half)
    rest = n_cols - 2 * half
    return {
        "HEADS": n_heads,
        "ROWS": max(1, TILE // block),
        "HALF": block,
        "REST": triton.next_power_of_2(rest) if rest else 0,
    }


def rotate(x: Tensor, cos: Tensor, sin: Tensor, back: bool, counted: bool) -> tuple[Tensor, Tensor]:
    """Turns x [B, heads, S, D] by contiguous angles, or back: y in its shape, dense as [B, S, heads, D], and rows
    [1, 9] or [0, 9].
    """
    batch, n_heads, n_positions, n_cols = x.shape
    y = x.new_empty(batch, n_positions, n_heads, n_cols).transpose(1, 2)
    half, n_rows = cos.shape[-1] // 2, batch * n_positions * n_heads
    tile = _tile_for(n_heads, n_cols, half)
    programs, tiles_per_program = share(cdiv(n_rows, tile["ROWS"]), counted)
    partials = new_partials(x, 1, programs, counted)
    strides = x.stride()[:3]
    unit = 1 if any(stride % ALIGNED for stride, n in zip(strides, x.shape, strict=False) if n > 1) else ALIGNED
    if x.numel():
        with on_device(x):
            _rotary_kernel[(programs,)](
                x, cos, sin, y, partials, n_rows, n_positions, *(stride // unit for stride in strides),
                n_positions if cos.shape[0] > 1 else 0, tiles_per_program, n_cols, half,
                BACK=back, UNIT=unit, **tile, num_warps=NUM_WARPS, enable_fp_fusion=False,
            )  # fmt: skip
    return y, rows_of(y, partials)


def aot_variants() -> list[AotVariant]:
    """What `benchmarks/compile_kernels.py` compiles ahead of time: LLaMA's heads, counted in fp16, and GPT-NeoX's."""
    sizes = dict.fromkeys(
        ("n_rows", "n_positions", "batch_stride", "head_stride", "position_stride", "angle_rows",
         "tiles_per_program", "n_cols", "half"), "i32",
    )  # fmt: skip
    variants = []
    for name, dtype, n_heads, half, counted in (
        ("rotary", "fp16", 32, 64, True),
        ("rotary", "bf16", 32, 64, False),
        ("rotary", "fp32", 32, 64, False),
        ("partial rotary", "fp16", 40, 32, True),
    ):
        for back in (False, True):
            pointers = {"x_ptr": f"*{dtype}", "cos_ptr": f"*{dtype}", "sin_ptr": f"*{dtype}", "y_ptr": f"*{dtype}"}
            counts = {"partials_ptr": "*fp64"} if counted else {}
            variants.append(
                AotVariant(
                    f"{name}{' backward' if back else ''} {dtype}",
                    _rotary_kernel,
                    {**pointers, **counts, **sizes},
                    {"BACK": back, "UNIT": ALIGNED, **_tile_for(n_heads, 128, half)}
                    | ({} if counted else {"partials_ptr": None}),
                    (*pointers, *counts, "n_cols", "half"),
                    num_warps=NUM_WARPS,
                )
            )
    return variants
