"""How the launches of a LoRA linear share their work: grids, splits, sizes. Kept by shape, for every layer asks again.

M tokens, K in, c_i columns and k_i ranks of up to four projections, `n_sm` multiprocessors, `precision` as tiles.py
has it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from ..backend import cdiv
from .projections import four
from .read.spans import cut
from .tiles import GRADIENT_ALIGN, TILES, TOTAL_BLOCK, Tile, chunk_of, padded_rank

MAX_PARTIALS = 512
"""Programs of one launch that leave statistics, for a projection: one program adds them up, and they live as long as a
micro-batch. Nearly four blocks on each of the 132 multiprocessors of an H100."""

Grid = tuple[int, int, int]
Rows = int | tuple[int, ...]


def shares(n: int, block: int, wanted: int) -> tuple[int, int]:
    """Splits `n` in about `wanted` parts of whole blocks: how many parts, and the length of one."""
    blocks = max(1, cdiv(n, block))
    per_part = cdiv(blocks, max(1, min(wanted, blocks)))
    return cdiv(blocks, per_part), per_part * block


@dataclass(frozen=True)
class Down:
    """Launch of H in `splits` parts, each of `blocks` blocks of columns of X."""

    tile: Tile
    padded: int
    grid: Grid
    splits: int
    blocks: int
    n_programs: int


@functools.lru_cache(maxsize=4096)
def down_shape(m: int, k: int, rank: int, precision: str, n_sm: int) -> Down:
    """X [M, K] with `rank` rows of A."""
    padded = padded_rank(rank)
    tile = TILES[precision]["down", padded]
    row_blocks = max(1, cdiv(m, tile.block_m))
    splits, length = shares(k, tile.block_c, 2 * n_sm // row_blocks)
    grid = row_blocks, splits, cdiv(rank, padded)
    return Down(tile, padded, grid, splits, length // tile.block_c, row_blocks * splits)


@dataclass(frozen=True)
class Up:
    """Launch over every z_i, `tiles` tiles a program; `n_programs` of each projection."""

    tile: Tile
    padded: int
    grid: Grid
    tiles: int
    n_programs: tuple[int, ...]
    sizes: tuple[int, ...]
    chunked: bool


@functools.lru_cache(maxsize=4096)
def up_shape(m: int, cols: tuple[int, ...], ranks: tuple[int, ...], precision: str) -> Up:
    """z_i [M, c_i], of rank k_i."""
    padded = padded_rank(max(ranks))
    tile = TILES[precision]["up", padded]
    row_blocks = max(1, cdiv(m, tile.block_m))
    length = shares(max(cols), tile.block_c, MAX_PARTIALS // row_blocks)[1]
    col_blocks = [cdiv(n, length) for n in cols]
    grid = row_blocks, sum(col_blocks), 1
    n_programs = tuple(n * row_blocks for n in col_blocks)
    sizes = *four(cols), *four(ranks)
    return Up(tile, padded, grid, length // tile.block_c, n_programs, sizes, max(ranks) > padded)


@dataclass(frozen=True)
class Read:
    """Launch of one pass over every z_i: strips of columns by splits of `length` rows, or by the splits of spans."""

    tile: Tile
    padded: int
    grid: Grid
    n_strips: int
    """The most that a projection has."""
    splits: int
    length: int
    n_outer: int
    """Values of all the outer products."""
    n_programs: tuple[int, ...]
    n_left: int
    """Programs that count the non-finite values of l, for each projection."""
    sizes: tuple[int, ...]
    n_squares: tuple[int, ...]
    """Programs that leave a square of an example, for each gradient."""
    wanted: tuple[int, int]
    """Splits where examples are not known, which keep every multiprocessor busy about once; and at most."""


@functools.lru_cache(maxsize=4096)
def read_shape(
    kernel: str, cols: tuple[int, ...], ranks: tuple[int, ...], precision: str, n_sm: int, rows: Rows
) -> Read:
    """z_i [M, c_i], of rank k_i, for grad; one z [M, c] and the ranks k_i of every gradient, for dA. `rows` is M, or
    where examples begin and M, as in read/spans.py.
    """
    alone = kernel == "dA"
    rank = sum(ranks) if alone else max(ranks)
    padded = chunk_of(kernel, precision, rank)
    tile, chunks = TILES[precision][kernel, padded], cdiv(rank, padded)
    strips = [cdiv(n, tile.block_c) for n in cols]
    busy = max(1, n_sm // sum(strips))
    splits, length = shares(rows if isinstance(rows, int) else rows[-1], tile.block_m, busy)
    wanted = splits, max(busy, min(busy + busy // 2, n_sm * tile.blocks_per_sm // sum(strips)))
    if not isinstance(rows, int):
        splits, length = cut(rows, tile.block_m, wanted).n, 0
    n_outer = cols[0] * rank if alone else sum(n * rank for n, rank in zip(cols, ranks, strict=True))
    n_programs, sizes = tuple(n * splits for n in strips), (*four(cols), *four(ranks))
    n_squares = tuple(n * chunks for n in (strips * len(ranks) if alone else strips))
    grid = sum(strips), splits, chunks
    return Read(
        tile, padded, grid, max(strips), splits, length, n_outer, n_programs, splits * chunks, sizes, n_squares, wanted
    )  # fmt: skip


@dataclass(frozen=True)
class Gradients:
    """Launch of every dA and then every dB, one behind the other in memory of `n` values."""

    n: int
    places: tuple[int, ...]
    n_programs: tuple[int, ...]
    sizes: tuple[int, ...]
    aligned: bool
    """Whether every one of them is a multiple of four values."""


@functools.lru_cache(maxsize=1024)
def gradients_shape(shapes: tuple[torch.Size, ...]) -> Gradients:
    """Shapes of every A and then every B."""
    counts = [rows * cols for rows, cols in shapes]
    places, end = [], 0
    for count in counts:
        places.append(end)
        end += cdiv(count, GRADIENT_ALIGN) * GRADIENT_ALIGN
    half = len(shapes) // 2
    ranks, cols = [rows for rows, _ in shapes[:half]], [rows for rows, _ in shapes[half:]]
    n_programs = tuple(cdiv(count, TOTAL_BLOCK) for count in counts)
    aligned = not any(count % 4 for count in counts)
    return Gradients(end, tuple(places), n_programs, (shapes[0][1], *four(cols), *four(ranks)), aligned)
