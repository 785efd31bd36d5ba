"""Tiles of the LoRA kernels, and what is compiled of them ahead of time.

One table serves every chip. Each tile was the first tried that all of sm_80 to sm_120 compile without spills,
within the 99 KiB of shared memory of the smallest; none has been timed.
"""

from dataclasses import dataclass

import torch
import triton

from . import lora_linear_triton as kernels
from .backend import AotVariant

CHIPS_WITH_TENSOR_CORES = (80, 86, 89, 90, 100, 120)

MAX_CHUNK = 64
"""Ranks per pass, for the sake of registers. Rank 128 reads dY twice; GEMMs and statistics do so thrice."""

TOTAL_BLOCK = 1024
CAST_BLOCK = 4096


@dataclass(frozen=True)
class Tile:
    """Tile of one kernel for one padded rank."""

    block_m: int
    block_c: int
    num_warps: int
    num_stages: int


# fmt: off
TILES = {
    ("down", 16): Tile(32, 64, 4, 3), ("down", 32): Tile(32, 64, 4, 3), ("down", 64): Tile(32, 64, 8, 2),
    ("up", 16): Tile(32, 64, 4, 1), ("up", 32): Tile(32, 128, 8, 1), ("up", 64): Tile(64, 64, 8, 1),
    ("grad", 16): Tile(32, 256, 8, 2), ("grad", 32): Tile(32, 128, 8, 2), ("grad", 64): Tile(32, 128, 8, 2),
    ("dA", 16): Tile(32, 128, 4, 2), ("dA", 32): Tile(32, 128, 8, 2), ("dA", 64): Tile(32, 128, 8, 2),
}
"""By kernel and padded rank, for 16-bit X."""

FP32_TILES = {
    ("down", 16): Tile(32, 32, 4, 2), ("down", 32): Tile(32, 32, 4, 2), ("down", 64): Tile(32, 32, 8, 2),
    ("up", 16): Tile(32, 64, 4, 1), ("up", 32): Tile(32, 64, 8, 1), ("up", 64): Tile(32, 64, 8, 1),
    ("grad", 16): Tile(32, 64, 8, 2), ("grad", 32): Tile(32, 64, 8, 2), ("grad", 64): Tile(32, 32, 8, 2),
    ("dA", 16): Tile(32, 64, 4, 2), ("dA", 32): Tile(32, 64, 8, 2), ("dA", 64): Tile(32, 64, 8, 2),
}
"""For fp32 X, whose products are three TF32 products: twice the bytes and three times the registers."""

ADD_TILE = Tile(16, 256, 8, 1)
WIDEN_TILE = Tile(16, 256, 8, 1)
# fmt: on


def tile_for(kernel: str, dtype: torch.dtype, padded: int) -> Tile:
    return (FP32_TILES if dtype == torch.float32 else TILES)[kernel, padded]


def padded_rank(rank: int) -> int:
    """Rank of a kernel's tiles: the smallest of 16, 32, 64 that holds it, 64 if none does."""
    return min(MAX_CHUNK, max(16, triton.next_power_of_2(rank)))


def aot_variants() -> list[AotVariant]:
    """What is compiled ahead of time: every tile shipped, with dropout and statistics."""
    types = {
        "seed_ptr": "*i64", "partials_ptr": "*fp64", "l_bad_ptr": "*fp64", "rank": "i32", "n_rows": "i32",
        "n_cols": "i32", "scale": "fp32", "p": "fp32", "x_ptr": "*fp16", "z_ptr": "*fp16", "rows_ptr":
        "*fp64",
    }  # fmt: skip
    common = {"DROPOUT": True, "STATS": True, "PRECISION": "tf32"}
    counts = {"COUNT_SMALL": True}
    variants = []

    def add(name: str, fn, tile: Tile, constexprs: dict, dot: bool, **overrides: str) -> None:
        names = [name for name in fn.arg_names if name not in constexprs]
        pointer = {name: "*fp32" for name in names if name.endswith("_ptr")}
        signature = {name: overrides.get(name, types.get(name, pointer.get(name, "i32"))) for name in names}
        aligned = tuple(n for n in names if n in pointer or n in ("n", "n_cols", "part_stride", "width", "out_stride"))
        chips = CHIPS_WITH_TENSOR_CORES if dot else (75, *CHIPS_WITH_TENSOR_CORES)
        variants.append(
            AotVariant(name, fn, signature, constexprs, aligned, tile.num_warps, tile.num_stages, chips, dot)
        )

    for dtype, precise in (("fp16", "tf32"), ("bf16", "tf32"), ("fp32", "tf32x3")):
        z = {"x_ptr": f"*{dtype}", "z_ptr": f"*{dtype}"}
        small = {"COUNT_SMALL": dtype != "fp32"}
        for rank in (16,) if dtype == "bf16" else (16, 32, 64):  # bf16 compiles as fp16 does
            base = {**common, "PRECISION": precise, "RANK": rank}
            for name, fn, extra in (
                ("down", kernels._down_kernel, {}),
                ("up", kernels._up_kernel, {**small, "ROUNDED": dtype == "fp32"}),
                ("grad", kernels._grad_kernel, {**small, "DOWN": True, "DROPOUT": False}),
                ("dA", kernels._grad_kernel, {**small, "DOWN": False, "STATS": False}),
            ):
                tile = (FP32_TILES if dtype == "fp32" else TILES)[name, rank]
                shape = {"BLOCK_M": tile.block_m, "BLOCK_C": tile.block_c}
                add(f"lora {name} {dtype} r{rank}", fn, tile, {**base, **extra, **shape}, True, **z)
    tile = ADD_TILE
    shape = {"BLOCK_M": tile.block_m, "BLOCK_C": tile.block_c}
    add(
        "lora add fp16",
        kernels._up_kernel,
        tile,
        {**common, **counts, **shape, "ROUNDED": False, "RANK": 0},
        False,
    )
    shape = {"BLOCK_M": WIDEN_TILE.block_m, "BLOCK_C": WIDEN_TILE.block_c}
    constexprs = {"DROPOUT": True, "STATS": True, **counts, **shape}
    add("lora widen fp16", kernels._widen_kernel, WIDEN_TILE, constexprs, False)
    plain = Tile(0, 0, 4, 3)
    add("lora total", kernels._total_kernel, plain, {"STATS": True, "BLOCK": TOTAL_BLOCK}, False)
    add("lora cast", kernels._cast_kernel, plain, {"BLOCK": CAST_BLOCK}, False, x_ptr="*fp32", out_ptr="*fp16")
    doubles = dict.fromkeys(("in_ptr", "out_ptr", "grad_ptr", "a_ptr", "b_ptr", "dx_ptr"), "*fp64")
    add("lora forward rows", kernels._forward_rows_kernel, plain, {}, False, **doubles)
    ends = {"GROUP": 3, "HAS_DX": True}
    add("lora backward rows", kernels._backward_rows_kernel, plain, ends, False, **doubles)
    return variants
