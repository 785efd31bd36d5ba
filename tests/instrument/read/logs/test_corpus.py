"""Shapes of logs that people hold: what is read of each, and that none crashes, cut, doubled, swapped or re-encoded."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_train.instrument.judge.explain import explain, lines
from lora_train.instrument.judge.wording import TRAINERS
from lora_train.instrument.read.history import TASKS, History, SourceError
from lora_train.instrument.read.logs import read_history
from lora_train.instrument.show.report.data import report_data

from . import consoles, documents

SHAPES = {**consoles.SHAPES, **documents.SHAPES}


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def same(got, expected) -> bool:
    """None stands for NaN."""
    got = np.asarray(got, "float64")
    values = np.array([math.nan if value is None else value for value in np.ravel(np.asarray(expected, object))])
    return got.shape == values.shape and np.allclose(got, values, rtol=1e-9, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", SHAPES)
def test_what_is_read_of_a_shape(tmp_path, name):
    file, content, expected = SHAPES[name]
    history = read_history(written(tmp_path, file, content))
    for key, value in expected.items():
        if key in ("step", "loss"):
            assert same(history.steps[key], value), history.steps
        elif key == "evals":
            assert same(np.ravel(history.evals[["step", "eval_loss"]].to_numpy()), value), history.evals
        elif key in ("columns", "eval_columns"):
            frame = history.steps if key == "columns" else history.evals
            for column, values in value.items():
                assert same(frame[column], values), (column, frame[column].tolist())
        elif key == "progress":
            assert same(np.ravel(history.progress.to_numpy()), value), history.progress
        else:
            assert getattr(history, key) == value, key


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_is_judged_and_drawn(tmp_path, name):
    file, content, _ = SHAPES[name]
    judged(read_history(written(tmp_path, file, content)))


def judged(history: History) -> None:
    """Every consumer of a history takes it."""
    assert history.task in TASKS
    assert history.trainer in TRAINERS
    assert len(history.steps)
    assert history.steps["step"].is_monotonic_increasing
    assert history.last_step >= 0
    for lang in ("en", "ko"):
        assert lines(history, explain(history), lang)
    json.dumps(report_data(history), allow_nan=False)


def cut(data: bytes, draw) -> bytes:
    begin, end = sorted(draw(st.integers(0, len(data))) for _ in range(2))
    return data[begin:end]


def doubled(data: bytes, draw) -> bytes:
    found = data.split(b"\n")
    times = draw(st.lists(st.integers(0, 3), min_size=len(found), max_size=len(found)))
    return b"\n".join(line for line, n in zip(found, times, strict=True) for _ in range(n))


def swapped(data: bytes, draw) -> bytes:
    found = bytearray(data)
    for _ in range(draw(st.integers(1, 8))):
        at = draw(st.integers(0, max(0, len(found) - 1)))
        found[at : at + 1] = draw(st.binary(max_size=2))
    return bytes(found)


def recoded(data: bytes, draw) -> bytes:
    name = draw(st.sampled_from(["utf-16", "utf-16-le", "utf-8-sig", "cp949", "latin-1", "utf-32"]))
    return data.decode("utf-8", "replace").encode(name, "replace")


def renumbered(data: bytes, draw) -> bytes:
    """Some numbers become others: zeros, huge ones, nothing."""
    wrong = draw(st.sampled_from([b"0", b"-1", b"1e308", b"9" * 400, b"nan", b"", b"null", b"1_0", b"0.0.1", b"{"]))
    found = data.split(b" ")
    picked = draw(st.sets(st.integers(0, len(found) - 1), max_size=6))
    return b" ".join(wrong if i in picked else word for i, word in enumerate(found))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("mutated")


@settings(max_examples=300)
@given(data=st.data())
def test_a_damaged_log_is_read_or_refused_with_a_sentence(folder, data):
    file, content, _ = SHAPES[data.draw(st.sampled_from(sorted(SHAPES)))]
    raw = content if isinstance(content, bytes) else content.encode()
    for change in data.draw(st.lists(st.sampled_from([cut, doubled, swapped, recoded, renumbered]), max_size=3)):
        raw = change(raw, data.draw)
    path = written(folder, file, raw)
    with contextlib.suppress(SourceError):
        history = read_history(path)
        assert np.isfinite(history.steps["step"]).all()
        judged(history)
