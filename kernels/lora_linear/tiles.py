"""Tiles of the LoRA kernels, and what is compiled of them ahead of time.

One table serves every chip from sm_80 to sm_120, one sm_75. Each tile was the first tried that they compile without
spills, within the shared memory of the smallest; of `grad`, the first of which every SM holds two blocks, with all
that they keep in registers. None has been timed.
"""

import re
from dataclasses import dataclass
from typing import Any

import torch

from ..backend import AotVariant, has_tensor_cores
from . import kernels, totals
from .projections import MAX_GROUP
from .read import grad

CHIPS_WITH_TENSOR_CORES = (80, 86, 89, 90, 100, 120)

MAX_CHUNK = 64
"""Ranks per pass, for the sake of registers. Rank 128 reads dY twice; GEMMs and statistics do so thrice."""

TOTAL_BLOCK = 1024
CAST_BLOCK = 4096

GRADIENT_ALIGN = 16
"""Values at a multiple of which each gradient of a group begins in the memory they share."""


@dataclass(frozen=True)
class Tile:
    """Tile of one kernel for one padded rank."""

    block_m: int
    block_c: int
    num_warps: int
    num_stages: int
    registers: int | None = None
    """The most of a thread of grad and dA; left to itself ptxas spills to hold three blocks on an SM of sm_86."""

    @property
    def blocks_per_sm(self) -> int:
        """That registers leave room for."""
        return max(1, (1 << 16) // (32 * self.num_warps * (self.registers or 255)))


# fmt: off
TILES = {
    "tf32": {
        ("down", 16): Tile(32, 64, 4, 3), ("down", 32): Tile(32, 64, 4, 3), ("down", 64): Tile(32, 64, 8, 2),
        ("up", 16): Tile(32, 64, 4, 2), ("up", 32): Tile(32, 64, 4, 2), ("up", 64): Tile(64, 64, 8, 1),
        ("grad", 16): Tile(32, 128, 4, 2, 255), ("grad", 32): Tile(32, 64, 4, 2, 255),
        ("grad", 64): Tile(16, 64, 4, 1, 255),
        ("dA", 16): Tile(32, 128, 4, 2, 255), ("dA", 32): Tile(16, 128, 4, 2, 255),
        ("dA", 64): Tile(32, 128, 8, 2, 255),
    },
    "tf32x3": {
        ("down", 16): Tile(32, 32, 4, 2), ("down", 32): Tile(32, 32, 4, 2), ("down", 64): Tile(32, 32, 4, 2),
        ("up", 16): Tile(32, 64, 4, 1), ("up", 32): Tile(32, 64, 8, 1), ("up", 64): Tile(32, 64, 8, 2),
        ("grad", 16): Tile(16, 64, 4, 2, 255), ("grad", 32): Tile(16, 64, 4, 2, 255),
        ("dA", 16): Tile(32, 64, 4, 2, 255), ("dA", 32): Tile(16, 64, 4, 2, 255), ("dA", 64): Tile(16, 64, 4, 2, 255),
    },
    "ieee": {
        ("down", 16): Tile(32, 64, 4, 1), ("down", 32): Tile(32, 64, 4, 1), ("down", 64): Tile(32, 64, 8, 1),
        ("up", 16): Tile(32, 32, 4, 1), ("up", 32): Tile(32, 64, 4, 1), ("up", 64): Tile(32, 32, 4, 1),
        ("grad", 16): Tile(16, 128, 4, 1, 255), ("grad", 32): Tile(32, 64, 4, 1, 255),
        ("dA", 16): Tile(32, 128, 4, 1, 255), ("dA", 32): Tile(16, 128, 4, 1, 255),
        ("dA", 64): Tile(32, 128, 8, 1, 255),
    },
}
"""By how `tl.dot` multiplies, kernel and padded rank. Three TF32 products take twice the bytes and three times the
registers of one; fused multiply-adds take a thread's operands into registers.
"""
# fmt: on


def precision(x: torch.Tensor) -> str:
    """How `tl.dot` multiplies where the stored side is `x`: see kernels.py."""
    return precision_of(x.dtype, has_tensor_cores(x.device))


def precision_of(dtype: torch.dtype, on_tensor_cores: bool) -> str:
    """The same by the dtype of the stored side."""
    if not on_tensor_cores:
        return "ieee"
    return "tf32x3" if dtype == torch.float32 else "tf32"


def padded_rank(rank: int) -> int:
    """Rank of a kernel's tiles: the smallest of 16, 32, 64 that holds it, 64 if none does."""
    return 16 if rank <= 16 else 32 if rank <= 32 else MAX_CHUNK


def chunk_of(kernel: str, precision: str, rank: int) -> int:
    """Ranks of one pass of `kernel`: of fp32 operands grad has no registers for 64."""
    padded = padded_rank(rank)
    return padded if (kernel, padded) in TILES[precision] else padded // 2


def aot_variants() -> list[AotVariant]:
    """What is compiled ahead of time: every tile shipped, with dropout and statistics."""
    variants = []

    def add(name: str, fn, tile: Tile, constexprs: dict, dot: bool, dtype: str = "fp16", **overrides: str) -> None:
        names = [name for name in fn.arg_names if name not in constexprs]
        pointer = {name: "*fp32" for name in names if name.endswith("_ptr")}
        pointer |= {name: f"*{dtype}" for name in names if name == "x_ptr" or re.fullmatch(r"z\d?_ptr", name)}
        pointer |= {name: "*fp64" for name in names if name in ("partials_ptr", "squares_ptr")}
        pointer |= {name: "*i32" for name in names if name.endswith("spans_ptr")}
        kinds = {"seed_ptr": "*i64", "p": "fp32", **{f"s{i}": "fp32" for i in range(MAX_GROUP)}, **overrides}
        signature = {name: kinds.get(name, pointer.get(name, "i32")) for name in names}
        widths = ("n_cols", "n_in", "width", "out_stride", *(f"c{i}" for i in range(MAX_GROUP)))
        aligned = tuple(name for name in names if name in pointer or name in widths)
        how: Any = {"num_warps": tile.num_warps, "num_stages": tile.num_stages, "maxnreg": tile.registers}
        if not dot:
            variants.append(AotVariant(name, fn, signature, constexprs, aligned, **how))
            return
        fast = constexprs["PRECISION"] != "ieee"
        how |= {"chips": CHIPS_WITH_TENSOR_CORES if fast else (75,), "tensor_cores": fast}
        variants.append(AotVariant(name, fn, signature, constexprs, aligned, **how))

    made = (("fp16", "tf32"), ("fp16", "ieee"), ("bf16", "tf32"), ("fp32", "tf32x3"), ("fp32", "ieee"))
    for dtype, precise in made:
        small = {"COUNT_SMALL": dtype != "fp32"}
        for rank in (16,) if dtype == "bf16" else (16, 32, 64):  # bf16 compiles as fp16 does
            base = {"DROPOUT": True, "STATS": True, "PRECISION": precise, "RANK": rank}
            up = {**small, "CHUNKED": False, "ROUNDED": dtype == "fp32"}
            for name, fn, extra in (
                ("down", kernels._down_kernel, {}),
                ("up", kernels._up_kernel, {**up, "GROUP": 1, "ACROSS": False}),
                ("up_Y", kernels._up_kernel, {**up, "GROUP": 4, "ACROSS": True, "DROPOUT": False}),
                ("grad", grad._grad_kernel, {**small, "GROUP": 3, "DOWN": True, "DROPOUT": False, "CUT": False}),
                ("grad_rows", grad._grad_kernel, {**small, "GROUP": 3, "DOWN": True, "DROPOUT": False, "CUT": True}),
                ("dA_rows", grad._grad_kernel, {**small, "GROUP": 3, "DOWN": False, "STATS": False, "CUT": True}),
                ("dA", grad._grad_kernel, {**small, "GROUP": 1, "DOWN": False, "STATS": False, "CUT": False}),
            ):
                tile = TILES[precise].get((name.partition("_")[0], rank))
                if tile is None:
                    continue
                shape = {"BLOCK_M": tile.block_m, "BLOCK_C": tile.block_c}
                add(f"lora {name} {dtype} r{rank}", fn, tile, {**base, **extra, **shape}, True, dtype)
    plain = Tile(0, 0, 4, 3)
    strip = {"GROUP": 3, "STRIP": TILES["tf32"]["grad", 16].block_c, "BLOCK": TOTAL_BLOCK}
    add("lora total down", totals._total_down_kernel, plain, strip, False)
    ends = {"GROUP": 3, "STATS": True, "ALIGNED": True, "BLOCK": TOTAL_BLOCK, "ALIGN": GRADIENT_ALIGN}
    add("lora total gradients", totals._total_gradients_kernel, plain, {**ends, "CUT": False}, False)
    add("lora total gradients_rows", totals._total_gradients_kernel, plain, {**ends, "CUT": True}, False)
    block = {"ALIGNED": True, "BLOCK": CAST_BLOCK}
    add("lora cast", kernels._cast_kernel, plain, block, False, "fp32", out_ptr="*fp16")
    return variants
