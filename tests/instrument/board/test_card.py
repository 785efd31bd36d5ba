"""A row says what the run's report says."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import yaml
from lora_train.instrument.board.card import POINTS, card_of, peek, thinned
from lora_train.instrument.judge.explain import explain, read_history
from lora_train.instrument.show.page.people import both
from lora_train.instrument.show.report.data import report_data
from lora_train.instrument.show.report.overview import gravest

from ..advise.page.build import study
from .build import RUNS, append, copy, metrics

EVERY = ("healed", "healthy", "lengths", "overfitting", "stock", "v0_1_0/collapsed", "v0_1_0/healthy")


@pytest.mark.parametrize("source", EVERY)
def test_the_verdict_is_the_one_that_the_report_gives(source):
    card = card_of(RUNS / source, "run")
    status = report_data(read_history(RUNS / source))["status"]
    assert {name: card["verdict"][name] for name in ("verdict", "sentence")} == {
        name: status[name] for name in ("verdict", "sentence")
    }
    topic = card["verdict"]["topic"]
    assert status["topic"] == (None if topic == "overall" else both(f"page.topic.{topic}"))
    json.dumps(card, allow_nan=False)
    assert card["judged"]


@pytest.mark.parametrize("source", EVERY)
def test_a_quick_card_says_the_same_but_for_the_verdict(source):
    quick, whole = card_of(RUNS / source, "run", judged=False), card_of(RUNS / source, "run")
    assert quick | {"verdict": None, "judged": True} == whole | {"verdict": None}
    assert quick["judged"] == (source == "stock")  # whose zeros only a judgement knows


def test_numbers_of_a_run():
    card = card_of(RUNS / "overfitting", "run")
    history = read_history(RUNS / "overfitting")
    best = history.evals["eval_loss"].to_numpy("float64")
    assert card["best"]["step"] == int(history.evals["step"].iloc[int(np.argmin(best))])
    assert card["best"]["value"] == pytest.approx(best.min(), rel=1e-4)  # five digits
    assert (card["step"], card["planned"], card["finished"]) == (120, 120, True)
    spent = float(history.column("step_seconds").sum() + history.column("save_seconds_total").max())
    spent += float(history.evals["eval_runtime"].sum())  # the last evaluation comes after the last step's line
    assert card["seconds"] == pytest.approx(spent, abs=0.05)  # tenths of a second
    assert card["loss"] == pytest.approx(history.column("loss")[-1], rel=1e-6)


def test_a_zero_that_is_no_loss_is_a_gap():
    card = card_of(RUNS / "stock", "run")
    assert card["loss"] is None
    steps, losses = card["spark"]
    assert [loss is None for step, loss in zip(steps, losses, strict=True)] == [step >= 13 for step in steps]
    assert 0 not in losses


def test_the_best_is_by_the_metric_that_the_run_chooses_by(tmp_path):
    run = copy(tmp_path / "run", lines=0)
    for step, loss, accuracy in ((1, 3.0, 0.5), (2, 2.0, 0.7), (3, 2.5, 0.9)):
        append(run, {"start": 0, "step": step, "loss": 1.0, "grad_norm": 1.0})
        append(run, {"start": 0, "step": step, "eval_loss": loss, "eval_accuracy": accuracy})
    assert card_of(run, "run")["best"] == {"name": "eval_loss", "value": 2.0, "step": 2}
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["training"] |= {"metric_for_best_model": "accuracy", "greater_is_better": True}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert card_of(run, "run")["best"] == {"name": "eval_accuracy", "value": 0.9, "step": 3}


def test_a_study_says_how_many_ended_and_the_best(tmp_path):
    card = card_of(study(tmp_path / "sweep"), "study")
    assert (card["trials"], card["ended"], card["dead"]) == (5, 4, 1)
    assert card["best"] == {"name": "eval_loss", "value": 3.0, "step": 60}
    assert (card["finished"], card["seconds"]) == (False, 15.0)


@pytest.mark.parametrize(
    "text", ["", "no json\n", "\x00" * 100, "[1, 2]\n", '{"step": 1}\n', '{"step": 1e400, "loss": 1}\n']
)
def test_what_is_no_run_has_a_card_that_says_so(tmp_path, text):
    run = copy(tmp_path / "run", lines=0)
    (run / "metrics.jsonl").write_text(text)
    card = card_of(run, "run")
    json.dumps(card, allow_nan=False)
    assert card["verdict"] is None or card["spark"][0]


def test_a_run_of_another_version_says_so_without_its_path(tmp_path):
    run = copy(tmp_path / "run")
    (run / "env.json").write_text('{"schema_version": 99}')
    card = card_of(run, "run")
    assert "another version" in card["error"]["en"]
    assert str(tmp_path) not in card["error"]["en"]
    assert card_of(tmp_path / "gone", "run")["error"]["en"].startswith("there is no file or folder")


def test_a_picture_keeps_the_last_step_and_every_gap():
    steps, losses = thinned(list(range(1, 1001)), [1.0] * 500 + [None] * 500)
    assert len(steps) <= POINTS
    assert steps[-1] == 1000
    assert losses[0] == 1.0
    assert losses[-1] is None
    assert thinned([], []) == [[], []]
    assert thinned([1], [2.0]) == [[1], [2.0]]


def test_a_peek_at_the_end(tmp_path):
    run = copy(tmp_path / "run")
    history = read_history(run)
    found = peek(run)
    assert (found["step"], found["finished"]) == (150, True)
    assert found["loss"] == pytest.approx(history.column("loss")[-1])
    (run / "metrics.jsonl").write_text("".join(metrics()[:20]) + '{"torn')
    assert peek(run)["finished"] is False
    shutil.rmtree(run)
    assert peek(run) == {"started": None, "finished": False}
    assert gravest(explain(history)) is not None


def test_a_log_that_numbers_no_steps_counts_lines_as_its_report_does(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    lines = [{"loss": 2.0 - i / 100, "learning_rate": 1e-4} for i in range(40)]
    (run / "trainer_log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    status = report_data(read_history(run))["status"]
    assert card_of(run, "run")["verdict"]["sentence"] == status["sentence"]
