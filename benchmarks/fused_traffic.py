"""Bytes that the fused LoRA linear moves, as formulas of M, K, N, r, the tiles and the number of multiprocessors.

    launch      loads                                          stores
    down        X c,  A rows,  seed                            H splits
    total       parts splits                                   out
    up          Z,  L tiles,  R rows,  seed                    Z
    grad        Z c,  R splits,  L strips,  seed               D strips,  E splits

c = rank chunks of 64, rows = row blocks, and a factor is how often the operand is touched. Every launch leaves 64 bytes
of statistics per program where it counts. tests/benchmarks holds these formulas to what the kernels load and store
in Triton's interpreter, byte for byte. Products that cuBLAS makes are counted as each operand once.

One projection, forward and backward, from sm_80 on (on sm_75 cuBLAS makes the rank products).
"""

from dataclasses import dataclass

import torch
import triton
from lora_train.kernels.lora_linear_launch import MAX_PARTIALS, _shares
from lora_train.kernels.lora_linear_tiles import CAST_BLOCK, TOTAL_BLOCK, padded_rank, tile_for
from lora_train.kernels.reduce import N_FIELDS, N_PARTIALS

from .traffic import Access, Launch

PARTIAL_BYTES = 8 * N_PARTIALS
ROW_BYTES = 8 * N_FIELDS
SEED_BYTES = 8


@dataclass(frozen=True)
class Linear:
    """One LoRA linear of M tokens, K in, N out, on a chip."""

    n_tokens: int
    n_in: int
    n_out: int
    rank: int
    dtype: torch.dtype = torch.float16
    dropout: bool = True
    statistics: bool = True
    bias: bool = True
    n_multiprocessors: int = 132
    autocast_x: bool = False
    """X arrives in fp32, as from GPT-NeoX's LayerNorm under autocast, and is rounded here. False: in `dtype`."""


def _add_statistics(launch: Launch, layer: Linear, tensor: str, n_programs: int) -> None:
    if layer.statistics:
        size = n_programs * PARTIAL_BYTES
        launch.accesses["partials_ptr"] = Access(f"statistics of {tensor}", size, stored=size)


def _add_seed(launch: Launch, layer: Linear, n_tiles: int) -> None:
    if layer.dropout:
        launch.accesses["seed_ptr"] = Access("seed", SEED_BYTES, loaded=n_tiles * SEED_BYTES)


def down(layer: Linear) -> list[Launch]:
    """H = dropout(X) A^T, and the sum of its splits."""
    m, k, r = layer.n_tokens, layer.n_in, layer.rank
    padded = padded_rank(r)
    tile = tile_for("down", layer.dtype, padded)
    row_blocks, chunks = triton.cdiv(m, tile.block_m), triton.cdiv(r, padded)
    splits, _ = _shares(k, tile.block_c, 2 * layer.n_multiprocessors // row_blocks)
    x, a, h = m * k * layer.dtype.itemsize, r * k * 4, m * r * 4
    parts = "H" if splits == 1 else "H parts"
    launch = Launch(
        "down",
        {
            "x_ptr": Access("X", x, loaded=chunks * x),
            "a_ptr": Access("A", a, loaded=row_blocks * a),
            "h_ptr": Access(parts, splits * h, stored=splits * h),
        },
    )
    _add_seed(launch, layer, row_blocks * chunks * triton.cdiv(k, tile.block_c))
    _add_statistics(launch, layer, "X", row_blocks * splits)
    return [launch] if splits == 1 else [launch, total("H", h, splits)]


def total(out: str, out_bytes: int, n_parts: int, counted_in: Linear | None = None) -> Launch:
    """`out` = the sum of its parts; `counted_in` gives it statistics if that layer has them."""
    launch = Launch(
        f"total {out}",
        {
            "parts_ptr": Access(f"{out} parts", n_parts * out_bytes, loaded=n_parts * out_bytes),
            "out_ptr": Access(out, out_bytes, stored=out_bytes),
        },
    )
    if counted_in is not None:
        _add_statistics(launch, counted_in, out, triton.cdiv(out_bytes // 4, TOTAL_BLOCK))
    return launch


def up(layer: Linear, z: str, left: str, right: str, n_cols: int, dropout: bool) -> Launch:
    """z += keep(left right^T), in place."""
    m, r = layer.n_tokens, layer.rank
    tile = tile_for("up", layer.dtype, padded_rank(r))
    row_blocks = triton.cdiv(m, tile.block_m)
    col_blocks, length = _shares(n_cols, tile.block_c, MAX_PARTIALS // row_blocks)
    tiles = col_blocks * length // tile.block_c
    z_bytes, left_bytes, right_bytes = m * n_cols * layer.dtype.itemsize, m * r * 4, n_cols * r * 4
    launch = Launch(
        f"up {z}",
        {
            "z_ptr": Access(z, z_bytes, loaded=z_bytes, stored=z_bytes),
            "l_ptr": Access(left, left_bytes, loaded=tiles * left_bytes),
            "r_ptr": Access(right, right_bytes, loaded=row_blocks * right_bytes),
        },
    )
    if dropout:
        _add_seed(launch, layer, row_blocks * tiles)
    _add_statistics(launch, layer, z, row_blocks * col_blocks)
    return launch


def grad(layer: Linear) -> list[Launch]:
    """G and dB from one read of dY, and the sums of their parts."""
    m, n, r = layer.n_tokens, layer.n_out, layer.rank
    launch, strips, splits = _grad_launch(layer, "grad", "dY", "H", "dB", n, False)
    b, g = n * r * 4, m * r * 4
    launch.accesses["r_ptr"] = Access("B", b, loaded=splits * b)
    launch.accesses["down_ptr"] = Access("G parts", strips * g, stored=strips * g)
    return [launch, total("G", g, strips), total("dB", b, splits, layer)]


def da(layer: Linear) -> list[Launch]:
    """dA from one read of X, and the sum of its parts."""
    launch, _, splits = _grad_launch(layer, "dA", "X", "G", "dA", layer.n_in, layer.dropout)
    return [launch, total("dA", layer.n_in * layer.rank * 4, splits, layer)]


def _grad_launch(
    layer: Linear, kernel: str, z: str, left: str, outer: str, n_cols: int, dropout: bool
) -> tuple[Launch, int, int]:
    m, r = layer.n_tokens, layer.rank
    padded = padded_rank(r)
    tile = tile_for(kernel, layer.dtype, padded)
    strips, chunks = triton.cdiv(n_cols, tile.block_c), triton.cdiv(r, padded)
    splits, _ = _shares(m, tile.block_m, layer.n_multiprocessors // strips)
    z_bytes, left_bytes, outer_bytes = m * n_cols * layer.dtype.itemsize, m * r * 4, splits * n_cols * r * 4
    launch = Launch(
        kernel,
        {
            "z_ptr": Access(z, z_bytes, loaded=chunks * z_bytes),
            "l_ptr": Access(left, left_bytes, loaded=strips * left_bytes),
            "outer_ptr": Access(f"{outer} parts", outer_bytes, stored=outer_bytes),
        },
    )
    if dropout:
        _add_seed(launch, layer, strips * chunks * triton.cdiv(m, tile.block_m))
    if kernel == "grad":
        _add_statistics(launch, layer, z, strips * splits)
        if layer.statistics:
            bad = strips * splits * chunks * 8
            launch.accesses["l_bad_ptr"] = Access("non-finite H", bad, stored=bad)
    return launch, strips, splits


def product(name: str, layer: Linear, left: str, right: str, out: str) -> Launch:
    """A base GEMM of cuBLAS: each operand once, which it can at best."""
    m, k, n = layer.n_tokens, layer.n_in, layer.n_out
    item = layer.dtype.itemsize
    sizes = {"X": m * k * item, "Y": m * n * item, "dX": m * k * item, "dY": m * n * item, "W": n * k * item}
    accesses = {t: Access(t, sizes[t], loaded=sizes[t]) for t in (left, right)}
    accesses[out] = Access(out, sizes[out], stored=sizes[out])
    if layer.bias and out == "Y":
        accesses["bias"] = Access("bias", n * item, loaded=n * item)
    return Launch(name, accesses)


def _rows(name: str, counted: list[Launch], partials: dict[str, str], n_rows: int) -> list[Launch]:
    """The launch that makes rows of `partials` (argument: tensor), which `counted` left behind."""
    left = {access.tensor: access for launch in counted for access in launch.accesses.values() if access.stored}
    accesses = {
        argument: Access(tensor, left[tensor].size, loaded=left[tensor].size) for argument, tensor in partials.items()
    }
    accesses["rows_ptr"] = Access("rows", n_rows * ROW_BYTES, stored=n_rows * ROW_BYTES)
    return [Launch(name, accesses, statistics=True)]


def cast_x(layer: Linear) -> list[Launch]:
    """Autocast's rounding of X; with statistics its row is made too."""
    n = layer.n_tokens * layer.n_in
    wide, narrow = Access("X fp32", 4 * n, loaded=4 * n), Access("X", n * layer.dtype.itemsize)
    narrow.stored = narrow.size
    launch = Launch("cast X", {"x_ptr": wide, "out_ptr": narrow})
    if not layer.statistics:
        return [launch]
    partials = triton.cdiv(n, CAST_BLOCK) * PARTIAL_BYTES
    launch.accesses["partials_ptr"] = Access("statistics of the cast", partials, stored=partials)
    row = {
        "partials_ptr": Access("statistics of the cast", partials, loaded=partials),
        "rows_ptr": Access("row", ROW_BYTES, stored=ROW_BYTES),
    }
    return [launch, Launch("cast row", row, statistics=True)]


def forward(layer: Linear) -> list[Launch]:
    """The launches of one forward, in order."""
    launches = cast_x(layer) if layer.autocast_x else []
    launches += [*down(layer), product("GEMM Y", layer, "X", "W", "Y")]
    launches.append(up(layer, "Y", "H", "B", layer.n_out, False))
    if layer.statistics:
        launches += _rows("rows", launches, {"in_ptr": "statistics of X", "out_ptr": "statistics of Y"}, 2)
    return launches


def backward(layer: Linear) -> list[Launch]:
    """The launches of one backward, in order."""
    launches = [*grad(layer), product("GEMM dX", layer, "dY", "W", "dX"), *da(layer)]
    launches.append(up(layer, "dX", "G", "A", layer.n_in, layer.dropout))
    if layer.autocast_x:
        dx = layer.n_tokens * layer.n_in * layer.dtype.itemsize
        wide = layer.n_tokens * layer.n_in * 4
        launches.append(Launch("widen dX", {"dX": Access("dX", dx, dx), "out": Access("dX fp32", wide, 0, wide)}))
    if layer.statistics:
        nulls = 4 * ROW_BYTES
        partials = {
            "grad_ptr": "statistics of dY",
            "l_bad_ptr": "non-finite H",
            "a_ptr": "statistics of dA",
            "b_ptr": "statistics of dB",
            "dx_ptr": "statistics of dX",
        }
        rows = _rows("rows", launches, partials, 4)
        launches += [Launch("fill", {"rows": Access("rows", nulls, stored=nulls)}, statistics=True), *rows]
    return launches


def lower_bound(layer: Linear) -> int:
    """Bytes of a forward and a backward that touch each operand once, and write and read H once."""
    m, k, n, r = layer.n_tokens, layer.n_in, layer.n_out, layer.rank
    item = layer.dtype.itemsize
    x = m * k * (4 if layer.autocast_x else item)
    y, w, lora, bias = m * n * item, n * k * item, r * (k + n) * 4, n * item * layer.bias
    h = m * r * 4
    return (x + w + bias + lora + y + h) + (y + w + x + h + lora + x + lora)
