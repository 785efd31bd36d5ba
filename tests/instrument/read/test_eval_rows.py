"""Rows of evaluations on disk: whole or not at all, and the same ones read back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lora_train.instrument.read.eval_rows import COLUMNS, Confusion, EvaluationRows, read_rows, stored_steps, write_rows

ROWS = EvaluationRows(
    np.array([3, 5, 2**20], "int32"),
    np.array([1.25, np.nan, 1e-300]),
    np.array([1, 2, 400], "int32"),
    np.array([1, 2**63 + 1, 2**64 - 1], "uint64"),
)


def test_rows_are_read_back_as_they_were_written(tmp_path: Path):
    write_rows(tmp_path, 500, 0, ROWS)
    write_rows(tmp_path, 12_000_000, 1, ROWS)
    assert stored_steps(tmp_path) == [500, 12_000_000]
    read = read_rows(tmp_path, 500)
    assert read is not None
    assert read.n_correct is None
    for name in COLUMNS[:4]:
        assert getattr(read, name).dtype == getattr(ROWS, name).dtype
        assert np.array_equal(getattr(read, name), getattr(ROWS, name), equal_nan=name == "loss_sum"), name
    assert read.digest == ROWS.digest


def test_weights_and_what_was_taken_for_what_are_kept(tmp_path: Path):
    confusion = Confusion(["bad", "</b>"], [[3, 1], [0, 2]])
    write_rows(tmp_path, 5, 0, replace(ROWS, weight=np.array([0.5, 1.0, 2.0]), confusion=confusion))
    read = read_rows(tmp_path, 5)
    assert read is not None
    assert read.weights.tolist() == [0.5, 1.0, 2.0]
    assert read.confusion == confusion
    assert ROWS.weights.tolist() == [1.0, 2.0, 400.0]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"labels": ["a"], "counts": [[1, 2]]}', '{"labels": ["a"], "counts": [[-1]]}',
     '{"labels": [], "counts": []}', '{"labels": ["a"], "counts": [["1"]]}', '{"labels": ["a"], "counts": 5}'],
)  # fmt: skip
def test_a_damaged_matrix_is_none(text):
    assert Confusion.of(text.encode()) is None


def test_right_answers_of_a_classifier_are_kept(tmp_path: Path):
    write_rows(tmp_path, 5, 0, replace(ROWS, n_correct=np.array([0, 1, 1], "int32")))
    read = read_rows(tmp_path, 5)
    assert read is not None
    assert read.n_correct is not None
    assert read.n_correct.tolist() == [0, 1, 1]


def test_a_later_start_replaces_an_evaluation(tmp_path: Path):
    write_rows(tmp_path, 20, 0, ROWS)
    write_rows(tmp_path, 20, 1, replace(ROWS, loss_sum=np.ones(3)))
    read = read_rows(tmp_path, 20)
    assert read is not None
    assert read.loss_sum.tolist() == [1, 1, 1]
    assert [path.name for path in (tmp_path / "evaluations").iterdir()] == ["step-000020.parquet"]


def test_what_is_missing_or_torn_is_none(tmp_path: Path):
    assert stored_steps(tmp_path) == []
    assert read_rows(tmp_path, 500) is None
    write_rows(tmp_path, 500, 0, ROWS)
    (path,) = (tmp_path / "evaluations").iterdir()
    path.write_bytes(path.read_bytes()[:-9])
    assert read_rows(tmp_path, 500) is None


def test_the_digest_tells_rows_and_their_order():
    assert replace(ROWS, loss_sum=np.zeros(3)).digest == ROWS.digest
    assert replace(ROWS, hash=ROWS.hash[::-1]).digest != ROWS.digest


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_rows(tmp_path, 500, 0, ROWS)
    assert list((tmp_path / "evaluations").iterdir()) == []
