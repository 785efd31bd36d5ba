"""rows/ of a run folder: what was written is read, whatever a kill or a second start left there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from lora_train.instrument.read.row_log import ROWS, TRAINING_ROWS, RowsWriter, compact_rows, read_training_rows

MODULES = ["a.q_proj", "a.v_proj"]


def columns(step: int, rows: list[int], sumsq: float = 1.0) -> dict:
    n = len(rows)
    return {"step": [step] * n, "micro_batch": [0] * n, "process": [0] * n, "row": rows, "n_tokens": [9] * n,
            "n_supervised": [4, 2, 2][:n], "loss_sum": [8.0, np.nan, 1.0][:n], "sumsq": [sumsq, np.inf, 0.25][:n],
            "known": [True, True, False][:n]}  # fmt: skip


def write(folder: Path, start: int, steps: range, sumsq: float = 1.0, end: bool = True) -> RowsWriter:
    writer = RowsWriter(folder, start, MODULES, whole=True)
    for step in steps:
        shares = np.array([[1.0, 2.0], [np.nan, 3.0], [0.0, 0.5]]) if step % 2 == 0 else None
        along = {"along": [1.5, -0.5, 0.0]} if step % 2 == 0 else {}
        writer.write(columns(step, [5, 7, 1], sumsq) | along, shares)
    if end:
        writer.close()
    return writer


@pytest.mark.parametrize("compacted", [False, True])
def test_what_was_written_is_read(tmp_path: Path, compacted: bool):
    write(tmp_path, 0, range(1, 4))
    if compacted:
        compact_rows(tmp_path)
        assert [path.name for path in (tmp_path / ROWS).iterdir()] == ["start-0.parquet"]
    frame = read_training_rows(tmp_path, shares=True)
    assert [name for name in frame.columns if name in TRAINING_ROWS] == list(TRAINING_ROWS)
    assert frame["row"].tolist() == [5, 7, 1] * 3
    first = frame.iloc[0]
    assert first["loss"] == 2.0
    assert first["grad_norm"] == pytest.approx(1.0 * 8 / 4)
    assert np.isnan(frame["loss_sum"][1])
    assert np.isinf(frame["sumsq"][1])
    assert frame["sumsq"].isna().tolist()[:3] == [False, False, True]
    assert frame["along"].isna().tolist() == [True] * 3 + [False, False, True] + [True] * 3
    assert frame["along"][3:5].tolist() == [1.5, -0.5]
    assert frame["shares"][0] is None
    assert list(frame["shares"][3]) == [1.0, 2.0]
    assert np.isnan(frame["shares"][4][0])
    assert frame.attrs == {"modules": MODULES, "whole": True}
    assert read_training_rows(tmp_path, steps=[2])["step"].unique().tolist() == [2]


@pytest.mark.parametrize("compacted", [False, True])
def test_files_without_inner_products_are_read(tmp_path: Path, compacted: bool):
    """Those of 0.2.0.dev0 have none."""
    write(tmp_path, 0, range(1, 4))
    (path,) = (tmp_path / ROWS).iterdir()
    batches = [batch.drop_columns("along") for batch in pa.ipc.open_stream(path.read_bytes())]
    with pa.ipc.new_stream(str(path), batches[0].schema) as stream:
        for batch in batches:
            stream.write_batch(batch)
    if compacted:
        compact_rows(tmp_path)
    frame = read_training_rows(tmp_path)
    assert frame["sumsq"].tolist()[:2] == [1.0, np.inf]
    assert frame["along"].isna().all()


def test_the_last_start_of_a_step_counts(tmp_path: Path):
    write(tmp_path, 0, range(1, 5))
    write(tmp_path, 1, range(3, 6), sumsq=4.0)
    write(tmp_path, 1, range(5, 6), sumsq=9.0)
    frame = read_training_rows(tmp_path)
    first = frame.groupby("step")["sumsq"].first()
    assert first.tolist() == [1.0, 1.0, 4.0, 4.0, 9.0]
    assert frame["start"].tolist() == [0] * 6 + [1] * 9


def test_a_torn_end_is_left_out(tmp_path: Path):
    writer = write(tmp_path, 0, range(1, 6), end=False)
    writer.abandon()
    path = tmp_path / ROWS / "start-0.arrows"
    whole = path.read_bytes()
    for cut in range(len(whole), 0, -37):
        path.write_bytes(whole[:cut])
        steps = read_training_rows(tmp_path)["step"].unique().tolist()
        assert steps == list(range(1, len(steps) + 1))
    path.write_bytes(b"no arrow at all")
    assert len(read_training_rows(tmp_path)) == 0


@pytest.mark.parametrize("damage", [b"\xa5", b"{", b"9"])
def test_rows_whose_names_of_modules_are_damaged_are_read_without(tmp_path: Path, damage: bytes):
    write(tmp_path, 0, range(1, 4))
    path = tmp_path / ROWS / "start-0.arrows"
    path.write_bytes(path.read_bytes().replace(b'["a.q_proj"', damage * 11))
    frame = read_training_rows(tmp_path, shares=True)
    assert frame["row"].tolist() == [5, 7, 1] * 3
    assert frame.attrs == {"modules": [], "whole": False}


def test_without_rows_the_frame_is_empty(tmp_path: Path):
    frame = read_training_rows(tmp_path)
    assert len(frame) == 0
    assert {"row", "loss", "grad_norm"} <= set(frame.columns)


def test_files_are_small(tmp_path: Path):
    """2,000 steps of 16 rows with 210 modules: a fifth of what 10,000 may take, 6 MB."""
    rng = np.random.default_rng(0)
    writer = RowsWriter(tmp_path, 0, [f"layers.{i}" for i in range(210)], whole=True)
    tokens = rng.integers(30, 300, 5000)
    for step in range(1, 2001):
        row = rng.integers(0, 5000, 16)
        loss = tokens[row] * rng.gamma(4, 0.4, 16)
        found = {"step": [step] * 16, "micro_batch": np.arange(16) // 4, "process": [0] * 16, "row": row}
        found |= {"n_tokens": tokens[row], "n_supervised": tokens[row] // 2, "loss_sum": loss, "known": [True] * 16}
        writer.write(
            found | {"sumsq": rng.gamma(2, 0.01, 16)}, rng.gamma(2, 1e-4, (16, 210)) if step % 100 == 0 else None
        )
    writer.close()
    compact_rows(tmp_path)
    assert (tmp_path / ROWS / "start-0.parquet").stat().st_size < 6e6 / 5
