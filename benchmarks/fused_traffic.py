"""Bytes that the fused LoRA linear moves, as formulas of M, K, N, r, the tiles and the number of multiprocessors.

    launch      loads                                          stores
    down        X c,  A rows,  seed                            H splits
    up          Z,  L parts tiles,  R rows,  seed              Z,  H if it was split
    grad        Z c,  R splits,  L strips,  seed, spans        D strips,  E splits,  squares
    total       parts splits,  spans                           out,  squares
    rows        statistics of all launches, by a table         a row for each tensor

Where examples are known, spans are the splits, and squares 8 bytes a program and example that was not cut. c = rank
chunks of 64, rows = row blocks, and a factor is how often the operand is touched. Every launch leaves 64 bytes
of statistics per program where it counts. tests/benchmarks holds these formulas to what the kernels load and store
in Triton's interpreter, byte for byte. Products that cuBLAS makes are counted as each operand once.

One projection, forward and backward.
"""

import itertools
import math
from dataclasses import dataclass

import torch
import triton
from lora_train.kernels.lora_linear.read.spans import SPAN_COLUMNS, Spans, cut
from lora_train.kernels.lora_linear.shapes import MAX_PARTIALS, read_shape, shares
from lora_train.kernels.lora_linear.tiles import CAST_BLOCK, TILES, TOTAL_BLOCK, chunk_of, padded_rank, precision_of
from lora_train.kernels.statistics.pending_rows import N_COLUMNS
from lora_train.kernels.statistics.reduce import N_FIELDS, N_PARTIALS

from .traffic import THROUGH_A_TABLE, Access, Launch

PARTIAL_BYTES = 8 * N_PARTIALS
ROW_BYTES = 8 * N_FIELDS
SEED_BYTES = 8
SQUARE_BYTES = 8
BAD_BYTES = 16
"""The two counts of a partial that say whether what went into a product was finite."""
TABLE_LINE_BYTES = 8 * N_COLUMNS


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
    examples: tuple[int, ...] = ()
    """Tokens of each example, whose squares are taken; empty: nobody knows."""
    on_tensor_cores: bool = True

    @property
    def precision(self) -> str:
        """How products are made."""
        return precision_of(self.dtype, self.on_tensor_cores)

    @property
    def starts(self) -> tuple[int, ...]:
        """Where each begins, and M."""
        return (0, *itertools.accumulate(self.examples))


def _add_statistics(launch: Launch, layer: Linear, tensor: str, n_programs: int) -> None:
    if layer.statistics:
        size = n_programs * PARTIAL_BYTES
        launch.accesses["partials_ptr"] = Access(f"statistics of {tensor}", size, stored=size)


def _add_seed(launch: Launch, layer: Linear, n_tiles: int) -> None:
    if layer.dropout:
        launch.accesses["seed_ptr"] = Access("seed", SEED_BYTES, loaded=n_tiles * SEED_BYTES)


def _down_shape(layer: Linear) -> tuple[int, int]:
    """Row blocks and splits of H's launch."""
    row_blocks = triton.cdiv(layer.n_tokens, TILES[layer.precision]["down", padded_rank(layer.rank)].block_m)
    block = TILES[layer.precision]["down", padded_rank(layer.rank)].block_c
    return row_blocks, shares(layer.n_in, block, 2 * layer.n_multiprocessors // row_blocks)[0]


def down(layer: Linear) -> Launch:
    """The parts of H = dropout(X) A^T."""
    m, k, r = layer.n_tokens, layer.n_in, layer.rank
    padded = padded_rank(r)
    tile = TILES[layer.precision]["down", padded]
    chunks = triton.cdiv(r, padded)
    row_blocks, splits = _down_shape(layer)
    x, a, h = m * k * layer.dtype.itemsize, r * k * 4, m * r * 4
    launch = Launch(
        "down",
        {
            "x_ptr": Access("X", x, loaded=chunks * x),
            "a_ptr": Access("A", a, loaded=row_blocks * a),
            "h_ptr": Access("H" if splits == 1 else "H parts", splits * h, stored=splits * h),
        },
    )
    _add_seed(launch, layer, row_blocks * chunks * triton.cdiv(k, tile.block_c))
    _add_statistics(launch, layer, "X", row_blocks * splits)
    return launch


def total_down(layer: Linear, strips: int) -> Launch:
    """G = the sum of its parts."""
    g = layer.n_tokens * layer.rank * 4
    parts = Access("G parts", strips * g, loaded=strips * g)
    return Launch("total G", {"parts_ptr": parts, "out_ptr": Access("G", g, stored=g)})


def total_gradients(layer: Linear) -> Launch:
    """dA and dB = the sums of their parts, with statistics."""
    a, b = layer.n_in * layer.rank * 4, layer.n_out * layer.rank * 4
    a_splits, b_splits = _read_shape(layer, "dA")[1], _read_shape(layer, "grad")[1]
    launch = Launch(
        "total gradients",
        {
            "a_parts_ptr": Access("dA parts", a_splits * a, loaded=a_splits * a),
            "b_parts_ptr": Access("dB parts", b_splits * b, loaded=b_splits * b),
            "out_ptr": Access("gradients", a + b, stored=a + b),
        },
    )
    _add_statistics(launch, layer, "gradients", sum(_gradient_programs(layer)))
    if layer.examples:
        spans, programs = [_spans(layer, kernel) for kernel in ("dA", "grad")], _gradient_programs(layer)
        for name, own, n in zip("ab", spans, programs, strict=True):
            # where both are cut alike, one table stands for both arguments
            access = launch.accesses.setdefault(
                f"{'a' if spans[0] is own else name}_spans_ptr", Access("spans", 4 * own.n)
            )
            access.loaded += 4 * own.n * n
        if n_bytes := SQUARE_BYTES * sum(own.n_cut * n for own, n in zip(spans, programs, strict=True)):
            launch.accesses["squares_ptr"] = Access("squares of cut examples", n_bytes, stored=n_bytes)
    return launch


def _gradient_programs(layer: Linear) -> tuple[int, int]:
    """Of dA and of dB."""
    n_in, n_out = (triton.cdiv(n * layer.rank, TOTAL_BLOCK) for n in (layer.n_in, layer.n_out))
    return n_in, n_out


def _up_shape(layer: Linear, n_cols: int) -> tuple[int, int, int]:
    """Row blocks, blocks of columns, and tiles of an up launch."""
    tile = TILES[layer.precision]["up", padded_rank(layer.rank)]
    row_blocks = triton.cdiv(layer.n_tokens, tile.block_m)
    col_blocks, length = shares(n_cols, tile.block_c, MAX_PARTIALS // row_blocks)
    return row_blocks, col_blocks, col_blocks * length // tile.block_c


def up(layer: Linear, z: str, left: str, right: str, n_cols: int, dropout: bool) -> Launch:
    """z += keep(left right^T), in place; of H the parts are added, and the sum is left behind."""
    m, r = layer.n_tokens, layer.rank
    row_blocks, col_blocks, tiles = _up_shape(layer, n_cols)
    parts = _down_shape(layer)[1] if left == "H" else 1
    z_bytes, left_bytes, right_bytes = m * n_cols * layer.dtype.itemsize, m * r * 4, n_cols * r * 4
    name = left if parts == 1 else f"{left} parts"
    reads = tiles if layer.rank > padded_rank(layer.rank) else col_blocks  # ranks in chunks are read for every tile
    launch = Launch(
        f"up {z}",
        {
            "z0_ptr": Access(z, z_bytes, loaded=z_bytes, stored=z_bytes),
            "l_ptr": Access(name, parts * left_bytes, loaded=reads * parts * left_bytes),
            "r0_ptr": Access(right, right_bytes, loaded=row_blocks * right_bytes),
        },
    )
    if parts > 1:
        launch.accesses["l_out_ptr"] = Access(left, left_bytes, stored=left_bytes)
    if dropout:
        _add_seed(launch, layer, row_blocks * tiles)
    _add_statistics(launch, layer, z, row_blocks * col_blocks)
    return launch


def grad(layer: Linear) -> list[Launch]:
    """The parts of G and dB from one read of dY, and G."""
    m, n, r = layer.n_tokens, layer.n_out, layer.rank
    launch = _read(layer, "grad", ("dY", "H", "dB"), n, False)
    strips, splits, chunks = _read_shape(layer, "grad")
    b, g = n * r * 4, m * r * 4
    launch.accesses["r0_ptr"] = Access("B", b, loaded=splits * b)
    launch.accesses["down_ptr"] = Access("G parts", strips * g, stored=strips * g)
    if layer.statistics:
        size = strips * splits * PARTIAL_BYTES + splits * chunks * BAD_BYTES
        launch.accesses["partials_ptr"] = Access("statistics of dY", size, stored=size)
    return [launch, total_down(layer, strips)]


def da(layer: Linear) -> Launch:
    """The parts of dA from one read of X."""
    launch = _read(layer, "dA", ("X", "G", "dA"), layer.n_in, layer.dropout)
    launch.accesses["down_ptr"] = launch.accesses.pop("outer_ptr")  # one tensor stands for both arguments
    return launch


def _spans(layer: Linear, kernel: str) -> Spans:
    """How the examples are dealt to splits."""
    cols = (layer.n_out if kernel == "grad" else layer.n_in,)
    shape = read_shape(kernel, cols, (layer.rank,), layer.precision, layer.n_multiprocessors, layer.starts)
    return cut(layer.starts, shape.tile.block_m, shape.wanted)


def _read_shape(layer: Linear, kernel: str) -> tuple[int, int, int]:
    """Strips of columns, splits of rows and chunks of the rank."""
    padded = chunk_of(kernel, layer.precision, layer.rank)
    tile = TILES[layer.precision][kernel, padded]
    strips = triton.cdiv(layer.n_out if kernel == "grad" else layer.n_in, tile.block_c)
    splits, _ = shares(layer.n_tokens, tile.block_m, layer.n_multiprocessors // strips)
    if layer.examples:
        splits = _spans(layer, kernel).n
    return strips, splits, triton.cdiv(layer.rank, padded)


def _read(layer: Linear, kernel: str, names: tuple[str, str, str], n_cols: int, dropout: bool) -> Launch:
    """`names` are those of Z, of what stands left of it and of the gradient."""
    (z, left, outer), m, r = names, layer.n_tokens, layer.rank
    strips, splits, chunks = _read_shape(layer, kernel)
    block_m = TILES[layer.precision][kernel, chunk_of(kernel, layer.precision, r)].block_m
    z_bytes, left_bytes, outer_bytes = m * n_cols * layer.dtype.itemsize, m * r * 4, splits * n_cols * r * 4
    launch = Launch(
        kernel,
        {
            "z0_ptr": Access(z, z_bytes, loaded=chunks * z_bytes),
            "l_ptr": Access(left, left_bytes, loaded=strips * left_bytes),
            "outer_ptr": Access(f"{outer} parts", outer_bytes, stored=outer_bytes),
        },
    )
    n_tiles = triton.cdiv(m, block_m)
    if layer.examples:
        spans, n = _spans(layer, kernel), len(layer.examples)
        n_tiles, n_ends = spans.n_tiles, spans.numbers_at - SPAN_COLUMNS * splits
        table = 4 * (
            (SPAN_COLUMNS - 1) * splits + n_ends
        )  # all columns but one of a span, and the ends of its examples
        launch.accesses["spans_ptr"] = Access("spans", table, loaded=strips * chunks * table)
        squares = SQUARE_BYTES * strips * chunks * (n - spans.n_cut)
        if squares:
            launch.accesses["squares_ptr"] = Access(f"squares of {outer}", squares, stored=squares)
    if dropout:
        _add_seed(launch, layer, strips * chunks * n_tiles)
    return launch


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


def _rows(layer: Linear, counts: list[tuple[int, int, int]], touched: int) -> Launch:
    """The launch that writes rows, which a run makes once for all its layers.

    Args:
        counts: of each row, the partials of its tensor, and those of what went into it: whole, and of H.
        touched: bytes of all these partials, each counted once.
    """
    n_rows, n_lines = len(counts), len(counts) + 2 * bool(layer.examples)
    loaded = sum(own * PARTIAL_BYTES + (inputs + h) * BAD_BYTES for own, inputs, h in counts)
    stored, table = n_rows * ROW_BYTES, n_lines * TABLE_LINE_BYTES
    if layer.examples:
        n, kernels = SQUARE_BYTES * len(layer.examples), ("dA", "grad")
        spans = [_spans(layer, kernel) for kernel in kernels]
        for kernel, own, n_blocks in zip(kernels, spans, _gradient_programs(layer), strict=True):
            strips, _, chunks = _read_shape(layer, kernel)
            squares = (n - SQUARE_BYTES * own.n_cut) * strips * chunks + SQUARE_BYTES * own.n_cut * n_blocks
            loaded, touched, stored = loaded + n + squares, touched + n + squares, stored + n
        touched -= n if spans[0] is spans[1] else 0  # numbers of the examples, in one table
    accesses = {
        "table_ptr": Access("table", table, loaded=table),
        THROUGH_A_TABLE: Access("statistics", touched + stored, loaded, stored),
    }
    return Launch("rows", accesses, statistics=True)


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
    launches += [down(layer), product("GEMM Y", layer, "X", "W", "Y")]
    return [*launches, up(layer, "Y", "H", "B", layer.n_out, False)]


def backward(layer: Linear) -> list[Launch]:
    """The launches of one backward, in order, and the one that writes the rows of forward and backward."""
    launches = [product("GEMM dX", layer, "dY", "W", "dX"), *grad(layer), da(layer), total_gradients(layer)]
    launches.append(up(layer, "dX", "G", "A", layer.n_in, layer.dropout))
    if layer.autocast_x:
        dx = layer.n_tokens * layer.n_in * layer.dtype.itemsize
        wide = layer.n_tokens * layer.n_in * 4
        launches.append(Launch("widen dX", {"dX": Access("dX", dx, dx), "out": Access("dX fp32", wide, 0, wide)}))
    if layer.statistics:
        strips, splits, chunks = _read_shape(layer, "grad")
        dy, bad = strips * splits, splits * chunks
        a, b = (triton.cdiv(n * layer.rank, TOTAL_BLOCK) for n in (layer.n_in, layer.n_out))
        x, y, dx = (
            math.prod(_down_shape(layer)),
            *(math.prod(_up_shape(layer, n)[:2]) for n in (layer.n_out, layer.n_in)),
        )
        counts = [(x, 0, 0), (y, x, 0), (dy, 0, 0), (a, dy, bad), (b, dy, bad), (dx, dy, 0)]
        launches.append(_rows(layer, counts, (x + y + dy + a + b + dx) * PARTIAL_BYTES + bad * BAD_BYTES))
    return launches


def lower_bound(layer: Linear) -> int:
    """Bytes of a forward and a backward that touch each operand once, and write and read H once."""
    m, k, n, r = layer.n_tokens, layer.n_in, layer.n_out, layer.rank
    item = layer.dtype.itemsize
    x = m * k * (4 if layer.autocast_x else item)
    y, w, lora, bias = m * n * item, n * k * item, r * (k + n) * 4, n * item * layer.bias
    h = m * r * 4
    return (x + w + bias + lora + y + h) + (y + w + x + h + lora + x + lora)
