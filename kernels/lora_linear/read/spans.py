"""How the rows of a pass are dealt to splits where it is known which example each is of, and as what a kernel reads it.

A span has some whole examples, or a part of one, of whole tiles but for the last. Every split adds up one span. A table
int32 on the device says where they are:

    columns of a span    first row, last + 1, tiles, how many examples, where their ends are among all, the first of
                         them or -1 of a part, PART
    after all spans      where each of its examples ends, span by span
    after the ends       of each example its number among those that are cut, -1 of the others

PART: bit 0, its first example goes on from the span before; bit 1, its last goes on in the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy
import torch
from torch import Tensor

from ...backend import cdiv, forget_at_another_gpu, is_gpu

SPAN_COLUMNS, PART = 7, 6
GOES_ON, CONTINUES = 1, 2


class Span(NamedTuple):
    """Rows `first` to `stop` of the examples `example` to `example + n - 1`; `part` as above."""

    first: int
    stop: int
    tiles: int
    example: int
    n: int
    part: int


class Spans(NamedTuple):
    """What a launch takes of them.

    Attributes:
        n: splits.
        table: int32, see above; on the host.
        n_tiles: of all splits.
        n_cut: examples of which several spans have parts.
        numbers_at: where their numbers begin in the table.
    """

    n: int
    table: numpy.ndarray
    n_tiles: int
    n_cut: int
    numbers_at: int


def spread(starts: Sequence[int], block: int, wanted: tuple[int, int]) -> list[Span]:
    """As many spans as `wanted` says, about and at most, of examples that begin at `starts`, in tiles of `block` rows.

    An example of up to one and a quarter of the length wanted is not cut.
    """
    tiles = [cdiv(stop - start, block) for start, stop in pairwise(starts)]
    length = max(1, cdiv(sum(tiles), wanted[0]))
    while len(spans := _spread(starts, tiles, block, length)) > wanted[1]:
        length += cdiv(length, 8)
    return spans


def _spread(starts: Sequence[int], tiles: Sequence[int], block: int, length: int) -> list[Span]:
    spans: list[Span] = []
    is_open = False
    for e, n_tiles in enumerate(tiles):
        start, stop = starts[e], starts[e + 1]
        if n_tiles > length if len(tiles) == 1 else 4 * n_tiles > 5 * length:
            own = cdiv(n_tiles, cdiv(n_tiles, length))
            for at in range(start, stop, own * block):
                last = min(at + own * block, stop)
                part = GOES_ON * (at > start) + CONTINUES * (last < stop)
                spans.append(Span(at, last, cdiv(last - at, block), e, 1, part))
            is_open = False
        elif is_open and 2 * spans[-1].tiles + n_tiles <= 2 * length:
            first, _, joined, example, n, _ = spans[-1]
            spans[-1] = Span(first, stop, joined + n_tiles, example, n + 1, 0)
        else:
            spans.append(Span(start, stop, n_tiles, e, 1, 0))
            is_open = True
    return spans


@lru_cache(maxsize=256)
def cut(starts: tuple[int, ...], block: int, wanted: tuple[int, int]) -> Spans:
    """Spans of the examples that begin at `starts`, whose last is the number of rows.

    Raises:
        ValueError: they do not begin one behind the other from 0 on.
    """
    if len(starts) < 2 or starts[0] != 0 or any(stop < start for start, stop in pairwise(starts)):
        raise ValueError(f"starts do not go up from 0: {list(starts)[:8]}")
    spans, lines, ends = spread(starts, block, wanted), [], []
    numbers = [-1] * (len(starts) - 1)
    n_cut = 0
    for span in spans:
        is_part = span.part != 0
        example = -1 if is_part else span.example
        lines.append((span.first, span.stop, span.tiles, span.n, len(ends), example, span.part))
        ends += [span.stop] if is_part else starts[span.example + 1 : span.example + span.n + 1]
        if span.part == CONTINUES:
            numbers[span.example] = n_cut
            n_cut += 1
    flat = [value for line in lines for value in line] + ends
    table = numpy.array(flat + numbers, dtype=numpy.int32)
    return Spans(len(spans), table, sum(span.tiles for span in spans), n_cut, len(flat))


_tables: dict[tuple, Tensor] = {}
forget_at_another_gpu(_tables)
_MOST_TABLES = 64


def table_on(device: torch.device, starts: tuple[int, ...], block: int, wanted: tuple[int, int]) -> Tensor:
    """The table of `cut` on a device, where all layers of a micro-batch find the same one."""
    key = device, starts, block, wanted
    table = _tables.get(key)
    if table is None:
        table = torch.from_numpy(cut(starts, block, wanted).table)
        if is_gpu(device):
            table = table.pin_memory().to(device, non_blocking=True)
        if len(_tables) >= _MOST_TABLES:
            _tables.clear()  # what still runs keeps its memory: it is given out again on the same stream
        _tables[key] = table
    return table
