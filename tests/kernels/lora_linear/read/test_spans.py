"""Spans of examples: every row in one, in order; whole examples or a part of one; never more than there may be."""

from __future__ import annotations

import random
from itertools import accumulate, pairwise

import pytest
import torch
from lora_train.kernels.lora_linear.read import spans as module
from lora_train.kernels.lora_linear.read.spans import (
    CONTINUES,
    GOES_ON,
    SPAN_COLUMNS,
    cut,
    spread,
    table_on,
)


def random_starts(rng: random.Random) -> tuple[int, ...]:
    most = rng.choice([1, 20, 400, 3000])
    lengths = [rng.choice([0, 1, 16, most, rng.randint(0, most)]) for _ in range(rng.choice([1, 2, 8, 60]))]
    return (0, *accumulate(lengths))


@pytest.mark.parametrize("seed", range(40))
def test_every_row_is_in_one_span_and_no_tile_has_two_examples(seed: int):
    rng = random.Random(seed)
    starts, block = random_starts(rng), rng.choice([16, 32])
    busy = rng.choice([1, 2, 3, 16, 132])
    wanted = busy, rng.choice([busy, busy + busy // 2])
    spans = spread(starts, block, wanted)
    assert len(spans) <= wanted[1]
    assert [span.first for span in spans] == [0, *(span.stop for span in spans[:-1])]
    assert spans[-1].stop == starts[-1]
    assert [e for span in spans for e in range(span.example, span.example + span.n) if not span.part & GOES_ON] == list(
        range(len(starts) - 1)
    )
    for span in spans:
        ends = [span.stop] if span.part else starts[span.example + 1 : span.example + span.n + 1]
        assert ends[-1] == span.stop
        assert span.tiles == sum(-(-(stop - start) // block) for start, stop in pairwise([span.first, *ends]))
        assert span.n == 1 or not span.part
    for one, other in pairwise(spans):
        assert bool(one.part & CONTINUES) == bool(other.part & GOES_ON)
        assert not one.part & CONTINUES or (one.example == other.example and (one.stop - one.first) % block == 0)


def test_examples_that_fit_are_not_cut():
    assert [span.part for span in spread((0, 256, 512, 768, 1024), 32, (2, 3))] == [0, 0]
    assert [span.part for span in spread((0, 1024, 2048), 32, (1, 1))] == [0]
    assert [span.tiles for span in spread((0, 2048), 32, (4, 6))] == [16] * 4
    assert [span.n for span in spread((0, 64, 128, 192), 32, (2, 3))] == [2, 1]


def test_the_table_says_where_everything_is():
    starts = (0, 200, 210, 210, 400)
    found = cut(starts, 32, (3, 4))
    flat = found.table.tolist()
    lines = [flat[at : at + SPAN_COLUMNS] for at in range(0, found.n * SPAN_COLUMNS, SPAN_COLUMNS)]
    ends = flat[found.n * SPAN_COLUMNS : found.numbers_at]
    numbers, spans = flat[found.numbers_at :], spread(starts, 32, (3, 4))
    assert found.n_tiles == sum(span.tiles for span in spans)
    for line, span in zip(lines, spans, strict=True):
        first, last, tiles, n, place, example, part = line
        assert (first, last, tiles, n, part) == (span.first, span.stop, span.tiles, span.n, span.part)
        assert example == (-1 if part else span.example)
        assert ends[place : place + n][-1] == last
    assert numbers == [0, -1, -1, -1]
    assert found.n_cut == 1


@pytest.mark.parametrize("starts", [(1, 6), (0, 4, 3, 6), (0,), ()])
def test_starts_that_go_down_are_refused(starts: tuple[int, ...]):
    with pytest.raises(ValueError, match="starts do not go up from 0"):
        cut(starts, 16, (1, 1))


def test_a_table_is_made_once_for_all_layers(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_tables", {})
    how = torch.device("cpu"), (0, 5, 9), 16, (2, 3)
    table = table_on(*how)
    assert table_on(*how) is table
    assert torch.equal(table, torch.from_numpy(cut(*how[1:]).table))
    assert table_on(torch.device("cpu"), (0, 4, 9), 16, (2, 3)) is not table
    for i in range(200):
        table_on(torch.device("cpu"), (0, i), 16, (2, 3))
    assert len(module._tables) <= module._MOST_TABLES
