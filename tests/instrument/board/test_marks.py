"""Tags and notes lie beside the runs, whole, and nothing that somebody wrote there is lost."""

from __future__ import annotations

import json

import pytest
from lora_train.instrument.board.marks import FILE, LONGEST_NOTE, LONGEST_TAG, MOST_TAGS, Marks, MarksError, checked


def test_what_is_kept_is_read_again(tmp_path):
    marks = Marks(tmp_path)
    assert marks.read() == {}
    kept = {"tags": ["keep", "r 16"], "note": "메모\n둘째 줄"}
    assert marks.write("a/b", [" keep ", "keep", "", "r 16"], " 메모\n둘째 줄 ") == kept
    marks.write("c", ["x"], "")
    assert Marks(tmp_path).read() == {"a/b": kept, "c": {"tags": ["x"], "note": ""}}
    assert json.loads((tmp_path / FILE).read_text())["version"] == 1
    marks.write("c", [], "")
    assert list(Marks(tmp_path).read()) == ["a/b"]
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_what_another_board_wrote_meanwhile_stays(tmp_path):
    one, other = Marks(tmp_path), Marks(tmp_path)
    one.write("a", ["1"], "")
    other.write("b", ["2"], "")
    one.write("a", ["3"], "")
    assert {name: own["tags"] for name, own in one.read().items()} == {"a": ["3"], "b": ["2"]}


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"runs": []}', "\x00"])
def test_a_file_of_something_else_is_left_as_it_is(tmp_path, text):
    (tmp_path / FILE).write_text(text)
    marks = Marks(tmp_path)
    assert marks.read() == {}
    with pytest.raises(MarksError, match="Nothing was written"):
        marks.write("a", ["1"], "")
    assert (tmp_path / FILE).read_text() == text


def test_what_a_later_version_keeps_there_stays(tmp_path):
    (tmp_path / FILE).write_text(
        '{"version": 2, "stars": [1], "runs": {"a": {"tags": 3}, "b": {"tags": ["x"]}, "c": 1}}'
    )
    marks = Marks(tmp_path)
    assert marks.read() == {"b": {"tags": ["x"], "note": ""}}
    marks.write("d", ["y"], "")
    found = json.loads((tmp_path / FILE).read_text())
    assert (found["version"], found["stars"], found["runs"]["a"]) == (2, [1], {"tags": 3})


@pytest.mark.parametrize(
    ("tags", "note"),
    [
        ("a", ""),
        ([1], ""),
        ([], None),
        (None, ""),
        ({}, ""),
        ([str(i) for i in range(MOST_TAGS + 1)], ""),
        (["x" * (LONGEST_TAG + 1)], ""),
        ([], "x" * (LONGEST_NOTE + 1)),
    ],
)
def test_what_is_too_much_or_no_text_is_refused(tmp_path, tags, note):
    with pytest.raises(MarksError):
        Marks(tmp_path).write("a", tags, note)
    assert list(tmp_path.iterdir()) == []


def test_no_control_character_is_kept():
    assert checked(["a\x1b[31m\u202eb", "\ud800"], "x\x00\u2066y\tz\n") == {"tags": ["a[31mb"], "note": "xy\tz"}
