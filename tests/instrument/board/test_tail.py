"""Only what was appended is read; what is torn waits, what is no JSON is left out, another file is seen as one."""

from __future__ import annotations

import json
import os

import pytest
from lora_train.instrument.board.card import peek
from lora_train.instrument.board.tail import CHUNK, Tail, points

LINES = [json.dumps({"start": 0, "step": i, "loss": 1 / i}) + "\n" for i in range(1, 9)]


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(LINES[:3]))
    return path


def add(path, text: str | bytes) -> None:
    with path.open("ab") as file:
        file.write(text.encode() if isinstance(text, str) else text)


def steps(rows) -> list[int]:
    return [row["step"] for row in rows]


def test_only_new_lines(log):
    tail = Tail(log)
    assert steps(tail.read()) == [1, 2, 3]
    assert tail.read() == []
    add(log, "".join(LINES[3:5]))
    assert steps(tail.read()) == [4, 5]
    late = Tail(log, None)
    assert late.read() == []
    add(log, LINES[5])
    assert (steps(late.read()), steps(tail.read())) == ([6], [6])
    assert late.offset == tail.offset == log.stat().st_size
    assert steps(Tail(log, len("".join(LINES[:5]))).read()) == [6]


def test_a_torn_line_waits_for_its_end(log):
    tail = Tail(log, None)
    add(log, LINES[3][:10])
    assert tail.read() == []
    assert Tail(log, None).offset == len("".join(LINES[:3]))
    add(log, LINES[3][10:])
    assert steps(tail.read()) == [4]


def test_what_is_no_line_of_ours_is_left_out(log):
    tail = Tail(log, None)
    add(log, b"no json\n[1]\n\xff\xfe\n\n3\n" + b"[" * 100_000 + b"\n" + LINES[3].encode())
    assert steps(tail.read()) == [4]


def test_a_file_without_line_ends_is_passed_over(log):
    tail = Tail(log, None)
    add(log, b"x" * (CHUNK + 10))
    assert tail.read() == []
    assert tail.read() == []
    add(log, "\n" + LINES[3])
    assert steps(tail.read()) == [4]


@pytest.mark.parametrize("how", ["truncated", "replaced", "rewritten longer"])
def test_another_file_is_seen_as_one(log, how):
    tail = Tail(log, None)
    if how == "truncated":
        log.write_text(LINES[0])
    elif how == "replaced":
        other = log.with_name("other")
        other.write_text("".join(LINES))
        os.replace(other, log)
    else:
        log.write_text("".join(LINES).replace("step", "Step"))
    assert tail.read() is None


def test_a_pipe_in_place_of_the_log_is_waited_for_by_nobody(tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    assert Tail(tmp_path / "metrics.jsonl").read() == []
    assert peek(tmp_path) == {"started": None, "finished": False}


def test_a_file_that_is_not_there_yet(tmp_path):
    tail = Tail(tmp_path / "metrics.jsonl")
    assert tail.read() == []
    (tmp_path / "metrics.jsonl").write_text(LINES[0])
    assert steps(tail.read()) == [1]


def test_points_are_steps_with_a_gap_for_what_is_not_finite():
    rows = [
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": None},
        {"step": 3, "loss": float("nan")},
        {"step": 4, "loss": "0.1"},
        {"step": 5, "loss": 10**400},
        {"step": True, "loss": 1.0},
        {"step": "6", "loss": 1.0},
        {"step": 5, "eval_loss": 1.0},
        {"train_runtime": 1.0},
    ]
    assert points(rows) == [[1, 0.5], [2, None], [3, None], [4, None], [5, None]]
