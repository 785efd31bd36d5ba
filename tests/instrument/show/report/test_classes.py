"""The classes of a classifier's last evaluation on the page: counts and scores, in both languages, on a phone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from lora_train.instrument.judge.explain import read_history
from lora_train.instrument.read.eval_rows import Confusion, EvaluationRows, write_rows
from lora_train.instrument.show.report import write_report
from lora_train.instrument.show.report.classes import SHOWN, classes, table

HOSTILE = "</script><img src=x onerror=alert(1)>" + "x" * 200


def run_with(folder: Path, confusion: Confusion | None, step: int = 20) -> Path:
    """A run of 20 steps with evaluations after 10 and 20, the last of which has rows."""
    folder.mkdir()
    lines = [{"step": s, "loss": 1 / s, "grad_norm": 1.0, "learning_rate": 1e-3, "epoch": s / 10} for s in range(1, 21)]
    evals = [{"step": s, "eval_loss": 0.5, "eval_accuracy": s / 40, "eval_f1": 0.4} for s in (10, 20)]
    text = "".join(json.dumps(line) + "\n" for line in sorted([*lines, *evals], key=lambda line: line["step"]))
    (folder / "metrics.jsonl").write_text(text)
    (folder / "config.yaml").write_text("model: {task: seq_cls}\n")
    n = np.arange(3)
    rows = EvaluationRows(n.astype("int32"), n * 1.0, np.ones(3, "int32"), n.astype("uint64"), confusion=confusion)
    write_rows(folder, step, 0, rows)
    return folder


def test_scores_of_each_class_are_counted_from_the_matrix():
    found = table(Confusion(["a", "b", "never"], [[3, 1, 0], [2, 4, 0], [0, 0, 0]]))
    assert found["labels"] == ["a", "b", "never"]
    assert found["counts"] == [[3, 1, 0], [2, 4, 0], [0, 0, 0]]
    (a, b, never) = found["scores"]
    assert a == ["a", pytest.approx(3 / 5), pytest.approx(3 / 4), pytest.approx(6 / 9), 4]
    assert b == ["b", pytest.approx(4 / 5), pytest.approx(4 / 6), pytest.approx(8 / 11), 6]
    assert never == ["never", None, None, None, 0]


def test_of_many_classes_those_with_the_most_mistakes_are_shown():
    n = 2 * SHOWN
    counts = np.eye(n, dtype=int) * 5
    counts[3, 4] = 7
    found = table(Confusion([f"c{i}" for i in range(n)], counts.tolist()))
    assert len(found["labels"]) == SHOWN
    assert {"c3", "c4"} <= set(found["labels"])
    assert (found["of"], len(found["scores"])) == (n, n)


def test_only_an_evaluation_that_is_in_the_log_counts(tmp_path):
    matrix = Confusion(["a"], [[1]])
    assert (classes(read_history(run_with(tmp_path / "one", matrix))) or {})["step"] == 20
    assert classes(read_history(run_with(tmp_path / "two", matrix, step=30))) is None
    assert classes(read_history(run_with(tmp_path / "three", None))) is None


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_shows_them(opened, tmp_path, width):
    labels = ["bad", HOSTILE, *(f"a class with a long name {i}" for i in range(8))]
    counts = (np.eye(10, dtype=int) * 1234 + 2).tolist()
    page = opened(write_report(run_with(tmp_path / "run", Confusion(labels, counts))), width=width).page
    page.locator("#confusion").scroll_into_view_if_needed()
    cells = page.evaluate("[...document.querySelectorAll('#confusion td')].map((one) => one.textContent)")
    assert (len(cells), cells[:2]) == (100, ["1,236", "2"])
    heads = page.evaluate("[...document.querySelectorAll('#confusion thead th')].map((one) => one.textContent)")
    assert heads[1:] == labels  # as text
    assert page.evaluate("document.querySelectorAll('#at-classes img').length") == 0
    first = page.evaluate("[...document.querySelector('#of-classes tbody tr').children].map((one) => one.textContent)")
    assert first == ["bad", "98.6%", "98.6%", "98.6%", "1,254"]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.click("button[lang=ko]")
    assert "정밀도" in page.inner_text("#of-classes")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_language_model_has_none(opened, tmp_path):
    page = opened(write_report(run_with(tmp_path / "run", None))).page
    assert page.evaluate("document.querySelector('#at-classes')") is None
