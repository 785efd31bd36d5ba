"""The whole study on a tiny encoder: what was asked is answered by what the tool prints, in both languages."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.study.__main__ import main
from benchmarks.study.plan import CHANGED, Study
from benchmarks.study.questions import QUESTIONS

from ..trainer.classifiers import sentences, tiny, write

ASKED = [*range(41, 54), 56, 58, 59]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> tuple[Path, Path, Path]:
    folder = tmp_path_factory.mktemp("study")
    rows = [{"text": text, "label": "good" if praises else "bad"} for text, praises in sentences(240)]
    return folder / "runs", tiny(folder, "bert"), write(folder / "rows.jsonl", rows)


def test_every_question_is_there_once_and_one_thing_is_changed_at_a_time():
    assert [question.number for question in QUESTIONS] == ASKED
    assert all(sum(len(own) for own in changed.values()) <= 1 for changed in CHANGED.values())


def test_the_study_answers_every_question(inputs, capsys):
    runs, model, rows = inputs
    arguments = ["--output", str(runs), "--model", str(model), "--data", str(rows), "--rows", "240", "--epochs", "16"]
    arguments += ["--rate", "1e-2"]  # of a model that knows nothing yet
    assert main([*arguments, "--seeds", "2"]) == 0
    said = capsys.readouterr().out
    assert "NOT ANSWERED" not in said
    assert "16 of 16 questions answered" in said
    assert "2 settings differ at once (data.eval_fraction, training.gradient_accumulation_steps)" in said
    assert "are the same, bit for bit" in said  # logging changes no weight
    assert "foretell a grad_norm of" in said
    assert "the weights of both stood still" in said
    assert main([*arguments, "--seeds", "2", "--lang", "ko"]) == 0  # nothing is trained again
    assert "bit for bit" not in capsys.readouterr().out


def test_what_is_not_there_is_said(tmp_path, capsys):
    assert main(["--output", str(tmp_path), "--model", str(tmp_path / "none")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'none'} is not there: nothing to study\n"


def test_a_setting_differs_from_the_base_in_what_it_is_named_after(tmp_path):
    study = Study(tmp_path, "m", "d", 480, 8, 3)
    base, batch = study.settings("base", 1), study.settings("batch", 1)
    assert base["training"].pop("eval_steps") == 8 * batch["training"].pop("eval_steps")
    base["training"].pop("output_dir"), batch["training"].pop("output_dir")
    assert batch["training"].pop("gradient_accumulation_steps") == 8
    assert base == batch
