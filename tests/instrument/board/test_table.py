"""Rows as text: what has no room goes, a Korean letter takes two columns, and no name of a folder reaches the terminal
as a command."""

from __future__ import annotations

import re

import pytest
from lora_train.instrument.board.table import cell_width, curve, shortened, table
from lora_train.instrument.board.watch import Board

from .build import copy


@pytest.fixture
def rows(tmp_path):
    for name, source in (
        ("first", "healthy"),
        ("sweep/r=16,learning_rate=0.0001", "overfitting"),
        ("한글", "v0_1_0/collapsed"),
    ):
        copy(tmp_path / name, source)
    board = Board(tmp_path)
    board.fill(lambda *_: None)
    return sorted(board.shown()[1], key=lambda row: row["name"])


def test_a_line_a_run(rows):
    head, first, swept, korean = table(rows, "en")
    assert head.split() == ["run", "state", "loss", "best", "evaluation", "verdict", "steps", "time", "date"]
    assert re.fullmatch(
        r"first +ended +\S+ +2\.551  3\.457 @150 +healthy +150 +7\.0 s  \d{4}-\d\d-\d\d \d\d:\d\d", first
    )
    assert "watch eval_loss" in swept
    assert "sweep/r=16,learning_rate=0.0001" in swept
    assert "WRONG outcome" in korean
    assert "stopped" in korean
    assert "6/8" in korean


@pytest.mark.parametrize("lang", ["en", "ko"])
@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
def test_no_line_is_wider_than_the_terminal(rows, lang, width):
    lines = table(rows, lang, width)
    assert max(map(cell_width, lines)) <= width
    assert all(word in "\n".join(lines) for word in ("first", "한글"))
    narrow, wide = table(rows, lang, width)[0].split(), table(rows, lang)[0].split()
    assert set(narrow) <= set(wide)


def test_columns_stand_below_each_other(rows):
    starts = set()
    for line, state in zip(table(rows, "ko")[1:], ("끝남", "끝남", "멈춤"), strict=True):
        starts.add(cell_width(line[: line.index(state)]))
    assert len(starts) == 1


def test_colours_only_where_they_are_wanted(rows):
    assert "\x1b" not in "\n".join(table(rows, "en"))
    coloured = table(rows, "en", 200, True)
    assert "\x1b[31;1mWRONG outcome\x1b[0m" in coloured[3]
    assert [re.sub(r"\x1b\[[\d;]*m", "", line) for line in coloured] == table(rows, "en", 200)


def test_a_name_is_no_command_to_the_terminal(tmp_path):
    copy(tmp_path / "\x1b]0;title\x07a\nb\u202ec")
    board = Board(tmp_path)
    _, line = table(board.shown()[1], "en")
    assert line.startswith("\ufffd]0;title\ufffda\ufffdb\ufffdc ")


def test_nothing_of_no_rows():
    assert table([], "en") == []


def test_curves_and_lengths():
    assert curve([1.0, 2.0, None, 8.0]) == "▁▂×█"
    assert curve([None] * 3) == "×××"
    assert curve([]) == ""
    assert len(curve([float(i) for i in range(500)])) <= 12
    assert shortened("abcdefgh", 5) == "ab…gh"
    assert cell_width(shortened("가나다라마바사", 7)) <= 7
    assert cell_width("e\u0301한") == 3
