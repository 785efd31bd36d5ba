"""How much memory an operator takes beside what it returns, told by following its code: what is taken and given back,
in that order.

A prediction stands beside each operator, in the order of the operator's own lines; scratch.py has the table. Sizes of
the compiled loops come from the C files themselves (`cpu.LIMITS`), which also count what they take; tests compare a
prediction with that count and with every allocation that torch records, byte for byte. Neither sees what a matrix
library (MKL, oneDNN) packs its operands into: those have allocators of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from . import cpu
from .backend import cdiv

FLOAT = 4
GRAIN, TRANSPOSED = 1 << 15, 60 * 60
"""Values from which ATen sums them up on every thread, and of the block by which it copies what is transposed."""


@dataclass(frozen=True)
class Scratch:
    """Bytes of one call beside its inputs and outputs.

    Attributes:
        inside: given back when it returns: the most alive at once, less what it returns.
        waits: partials of statistics, given back when pending rows are written.
        stays: never given back, of each kind of room that calls share.
    """

    inside: int = 0
    waits: int = 0
    stays: dict[str, int] = field(default_factory=dict)


class Matrix(NamedTuple):
    """Shape and dtype of a matrix."""

    n_rows: int
    n_cols: int
    dtype: torch.dtype


class Ledger:
    """What a call has taken so far.

    Attributes:
        live: bytes alive now, outputs included.
        peak: the most alive at once.
        kept: outputs.
    """

    def __init__(self) -> None:
        self.live = self.peak = self.kept = self.waits = 0
        self.stays: dict[str, int] = {}

    def take(self, n_bytes: int) -> int:
        self.live += n_bytes
        self.peak = max(self.peak, self.live)
        return n_bytes

    def give(self, *n_bytes: int) -> None:
        self.live -= sum(n_bytes)

    def within(self, n_bytes: int) -> None:
        """Something that takes so much and gives it back."""
        self.give(self.take(n_bytes))

    def beside_number(self, n_bytes: int, dtype: torch.dtype) -> int:
        """What an operation with a Python number returns: ATen makes two tensors of that."""
        number = self.take(8 + size(dtype))
        result = self.take(n_bytes)
        self.give(number)
        return result

    def compare(self, n: int, dtype: torch.dtype) -> int:
        """The mask of `n` values compared with a number."""
        return self.beside_number(n, dtype)

    def total(self, n: int, copied: int = 0) -> None:
        """The sum of `n` values, in 8 bytes, that are copied into so many bytes: into a dtype to add them up in."""
        threads = torch.get_num_threads()
        partial = 8 * threads if n >= GRAIN and threads > 1 else 0
        self.within(8 + copied + partial)

    def transpose(self, n_rows: int, n_cols: int) -> int:
        """A contiguous copy of a transposed fp32 matrix, by blocks of 60 x 60."""
        result = self.take(FLOAT * n_rows * n_cols if n_rows > 1 and n_cols > 1 else 0)
        self.within(FLOAT * TRANSPOSED if result and n_rows * n_cols >= TRANSPOSED else 0)
        return result

    def keep(self, n_bytes: int) -> None:
        """An output."""
        self.kept += self.take(n_bytes)

    def wait(self, n_bytes: int) -> None:
        """Partials, which are there until rows are written."""
        self.keep(n_bytes)
        self.waits += n_bytes

    def scratch(self) -> Scratch:
        return Scratch(self.peak - self.kept, self.waits, self.stays)


def size(dtype: torch.dtype) -> int:
    """Bytes of a value."""
    return torch.empty(0, dtype=dtype, device="meta").element_size()


def dense(x: Tensor) -> int:
    """Bytes of `x.contiguous()`."""
    return 0 if x.is_contiguous() else x.numel() * x.element_size()


def _threads(n_shares: int, most: int) -> int:
    return min(torch.get_num_threads(), n_shares, most)


def low_rank(
    shape: tuple[int, int, int],
    n_rights: int,
    n_outers: int,
    is_update: bool = False,
    examples: tuple[Sequence[int], bool] | None = None,
) -> int:
    """Of `cpu.read` and `cpu.update`: R, the gradient of every share, a tile for every thread.

    Args:
        shape: rows, columns, and the sum of the ranks.
        examples: where they begin, and the rows; whether their squares are asked for.
    """
    limits, (rows, cols, rank) = cpu.LIMITS["low_rank"], shape
    factor, most = FLOAT * rank * cols, limits["MAX_SHARES"]
    if n_outers and factor and limits["OUTER_BYTES"] // factor < most:
        most = max(limits["OUTER_BYTES"] // factor, limits["MIN_SHARES"])
    tile = limits["TILE"]
    wanted = max(limits["MIN_ROWS"], cdiv(cdiv(rows, most), tile) * tile)
    starts, has_squares = ([0, rows], False) if examples is None else examples
    lengths = [stop - start for start, stop in pairwise(starts)]
    while len(shares := _shares(lengths, wanted)) > most:
        wanted += cdiv(wanted // 4, tile) * tile
    is_joined = n_outers and any(n_examples > 1 for n_examples in shares)
    space = FLOAT * cols * (tile + (rank if is_joined else 0))
    tiles = 0 if is_update else _threads(len(shares), limits["MAX_THREADS"]) * cdiv(space, 64) * 64
    blocks = limits["BLOCK_BYTES"] * (n_rights + n_outers)
    blocks += (limits["PARTIAL_BYTES"] + limits["SPAN_BYTES"]) * len(shares) + (2 * rank if has_squares else 0)
    return blocks + (factor if n_rights else 0) + (factor * max(len(shares), 1) if n_outers else 0) + tiles


def _shares(lengths: Sequence[int], wanted: int) -> list[int]:
    """How many examples each share of low_rank/shares.h has, empty ones between its first and its last included."""
    shares: list[int] = []
    last = open_rows = 0
    for example, length in enumerate(lengths):
        if not length:
            continue
        is_cut = length > wanted if len(lengths) == 1 else 2 * length > 3 * wanted
        if is_cut:
            shares += [1] * cdiv(length, wanted)
        elif open_rows and 2 * open_rows + length <= 2 * wanted:
            shares[-1] += example - last
            open_rows += length
            last = example
            continue
        else:
            shares.append(1)
        open_rows, last = (0 if is_cut else length), example
    return shares


def attention(batch: int, kv_heads: int, length: int, width: int) -> int:
    """Of `cpu.attention`: for every thread a row of the batch and a head of K and V."""
    limits = cpu.LIMITS["attention"]
    block, padded = limits["BLOCK"], cdiv(length, limits["BLOCK"]) * limits["BLOCK"]
    values = 6 * padded * width + 2 * block * padded + 4 * block * width
    return _threads(batch * kv_heads, limits["MAX_THREADS"]) * FLOAT * values


def statistics(n: int) -> int:
    """Of `cpu.stats` and `cpu.round_with_stats`: partials of every share."""
    limits = cpu.LIMITS["stats"]
    return limits["PARTIAL_BYTES"] * cdiv(n, limits["SHARE"])


def planes() -> dict[str, int]:
    """Of `cpu.product`: room for matrices in planes of bf16, which stays with the process."""
    limits = cpu.LIMITS["product"]
    threads = min(torch.get_num_threads(), limits["MAX_THREADS"])
    return {"planes": 2 * (threads * limits["W_PLANES"] + limits["X_PLANES"])}
