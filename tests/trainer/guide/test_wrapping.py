from __future__ import annotations

import pytest
from lora_train.trainer.guide.wrapping import hanging, width


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (None, "  r      one two three four"),
        (40, "  r      one two three four"),
        (20, "  r      one two\n         three four"),
        (12, "  r\n one two\n three four"),  # half of it would be indent
    ],
)
def test_lines_go_on_under_their_text(columns, expected):
    assert hanging("  r", "one two three four", 9, columns) == expected


def test_korean_letters_take_two_columns():
    assert hanging("키", "하나 둘 셋", 4, 12) == "키  하나 둘\n    셋"
    assert hanging("키", "하나 둘 셋", 4, 14) == "키  하나 둘 셋"


def test_a_long_label_moves_the_text():
    assert hanging("  training.output_dir", "here", 9, None) == "  training.output_dir here"


def test_a_pipe_gets_whole_lines(monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    assert width() is None
