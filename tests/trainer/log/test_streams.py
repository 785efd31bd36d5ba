"""Rows on their way to disk: which value is whose, which row is bad, and a disk that refuses."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lora_train.instrument.judge.detect import Trouble
from lora_train.instrument.read.row_log import RowsWriter, read_training_rows
from lora_train.instrument.record.rows.gradients import ALONG, KNOWN, LOSS, SUMSQ, RowValues
from lora_train.trainer.config.schema import Config
from lora_train.trainer.console import Console
from lora_train.trainer.data.batches import StepRows
from lora_train.trainer.data.examples import Example
from lora_train.trainer.errors import Stopped
from lora_train.trainer.log.streams import Streams, row_columns


def example(row: int) -> Example:
    return Example(row, np.arange(row + 2, dtype=np.int32), np.arange(row + 2) > 0)


def step_rows(*shares: list[list[int]], step: int = 4) -> StepRows:
    return StepRows(step, [[[example(row) for row in share] for share in micro] for micro in shares])


class Arrived:
    """What a recorder hands out."""

    always: tuple[bool, ...] = (False, False)

    def __init__(self, *values: RowValues):
        self._values = values

    def drain(self) -> tuple[RowValues, ...]:
        return self._values


def values(rows: StepRows, step: int = 4, modules: bool = False) -> RowValues:
    """Every row's loss is its number, its square the number squared, its inner product the number below 0; of two
    modules the first has a quarter.
    """
    columns, where = row_columns(rows)
    at = np.array(where).T
    found = torch.zeros(2, 3, 4, 4, dtype=torch.float64)
    row = torch.tensor(columns["row"], dtype=torch.float64)
    found[at[0], at[1], at[2], LOSS], found[at[0], at[1], at[2], KNOWN] = row, 1.0
    found[at[0], at[1], at[2], SUMSQ], found[at[0], at[1], at[2], ALONG] = row**2, -row
    shares = torch.stack([found[..., SUMSQ] / 4, found[..., SUMSQ] * 3 / 4], dim=-1) if modules else None
    return RowValues(step, found, shares, modules)


def streams(folder: Path | None, on_write_error: str = "continue") -> Streams:
    config = Config.model_validate(
        {"model": {"name_or_path": "m"}, "data": {"train": "t"}, "training": {"on_write_error": on_write_error}}
    )
    writer = None if folder is None else RowsWriter(folder, 0, ["a", "b"], whole=True)
    return Streams(config, Console(silent=True), None, writer)


def receive(into: Streams, rows: StepRows, found: RowValues, last: int | None = None) -> None:
    into.expect(rows)
    arrived: Any = Arrived(found)
    into.receive_rows(arrived, 9, drain=True, last=last)


def test_every_value_is_its_own_rows(tmp_path: Path):
    """Two processes, three micro-batches, of which the second process has none in the middle one."""
    rows = step_rows([[5, 1], [2]], [[7], []], [[3], [8, 9]])
    into = streams(tmp_path)
    receive(into, rows, values(rows, modules=True))
    for stream in into.open():
        stream.close()
    frame = read_training_rows(tmp_path, shares=True)
    assert frame["row"].tolist() == [5, 1, 2, 7, 3, 8, 9]
    assert frame["micro_batch"].tolist() == [0, 0, 0, 1, 2, 2, 2]
    assert frame["process"].tolist() == [0, 0, 1, 0, 0, 1, 1]
    assert frame["loss_sum"].tolist() == [5, 1, 2, 7, 3, 8, 9]
    assert frame["sumsq"].tolist() == [25, 1, 4, 49, 9, 64, 81]
    assert frame["n_supervised"].tolist() == [6, 2, 3, 8, 4, 9, 10]
    assert frame["along"].tolist() == [-5, -1, -2, -7, -3, -8, -9]
    assert [list(own) for own in frame["shares"][:2]] == [[6.25, 18.75], [0.25, 0.75]]


def test_inner_products_are_null_on_the_steps_between(tmp_path: Path):
    rows = step_rows([[5, 1], [2]])
    into = streams(tmp_path)
    receive(into, rows, values(rows))
    into.open()[0].close()
    assert read_training_rows(tmp_path)["along"].isna().all()


def test_a_step_after_the_one_that_went_wrong_is_dropped(tmp_path: Path):
    rows = step_rows([[5, 1], [2]])
    into = streams(tmp_path)
    receive(into, rows, values(rows), last=3)
    into.open()[0].close()
    assert len(read_training_rows(tmp_path)) == 0


@pytest.mark.parametrize(
    ("shares", "bad", "expected", "all_bad"),
    [
        ([[[5, 1], []], [[2, 3], []]], {1}, {(0, 0): [1]}, False),
        ([[[5, 1], []], [[2, 3], []]], {5, 1}, {}, False),
        ([[[5, 1], []], [[2, 3], []]], {5, 1, 2, 3}, {}, True),
        ([[[5], []], [[2], []]], {2}, {(1, 0): [2]}, False),
        ([[[5], [1]]], {1}, {(0, 1): [1]}, False),
        ([[[5], []]], {5}, {(0, 0): [5]}, True),
    ],
)
@pytest.mark.parametrize("column", [LOSS, SUMSQ])
def test_a_bad_row_is_named_where_others_are_not(
    column: int, shares: list, bad: set[int], expected: dict, all_bad: bool
):
    """Where a loss is not finite, gradients do not matter: those of all rows overflow at a scale that still falls."""
    rows = step_rows(*shares)
    found = values(rows)
    if column == LOSS:
        found.values[..., SUMSQ] = torch.nan
    columns, where = row_columns(rows)
    for row, (process, micro, at) in zip(columns["row"], where, strict=True):
        if row in bad:
            found.values[process, micro, at, column] = torch.inf
    into = streams(None)
    receive(into, rows, found)
    trouble = into.with_bad_rows(Trouble(4))
    assert (trouble.bad_rows, trouble.all_bad) == (expected, all_bad)
    assert into.with_bad_rows(Trouble(3)) == Trouble(3)


def test_a_square_that_nobody_took_makes_no_row_bad():
    rows = step_rows([[5, 1], []])
    found = values(rows)
    found.values[..., SUMSQ], found.values[..., KNOWN] = torch.nan, 0.0
    into = streams(None)
    receive(into, rows, found)
    assert into.with_bad_rows(Trouble(4)) == Trouble(4)


@pytest.mark.parametrize("decision", ["continue", "stop"])
def test_a_disk_that_refuses_ends_the_stream_or_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decision: str):
    rows = step_rows([[5, 1], [2]])
    into = streams(tmp_path, decision)

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(RowsWriter, "write", refuse)
    if decision == "stop":
        with pytest.raises(Stopped):
            receive(into, rows, values(rows))
        return
    receive(into, rows, values(rows))
    assert into.open() == []
    receive(into, rows, values(rows))
