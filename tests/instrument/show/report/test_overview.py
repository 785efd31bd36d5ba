"""The first screen: one state, the verdict that weighs most, and numbers that the findings have too."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from lora_train.instrument.judge.explain import Finding, explain, read_history
from lora_train.instrument.show.compare.ranking import metrics_of
from lora_train.instrument.show.report.charts import axes
from lora_train.instrument.show.report.data import report_data
from lora_train.instrument.show.report.overview import Best, best_evaluation, state, status, tiles, worst

from ....conftest import ROOT
from ...judge.explain.build import falling, history

RUNS = ROOT / "tests" / "runs"
STOPPED = [{"step": 3, "action": "stop"}]


@pytest.mark.parametrize(
    ("known", "following", "word"),
    [
        (history(loss=falling(5)), True, "ended"),
        (history(loss=falling(5), finished=False), True, "running"),
        (history(loss=falling(5), finished=False), False, "unfinished"),
        (history(loss=falling(5), finished=False, incidents=STOPPED), True, "stopped"),
        (history(loss=falling(5), finished=False, kind="log"), False, "log"),
    ],
)
def test_states(known, following, word):
    assert state(known, following) == word


def test_the_verdict_that_weighs_most_comes_first():
    findings = [Finding("a", verdict, "x") for verdict in ("healthy", "note", "watch", "wrong", "wrong")]
    assert worst(findings) is findings[3]
    assert worst(findings[:3]) is findings[2]
    assert worst([findings[1]]) is None


def test_a_stock_log_with_zeros_is_not_called_healthy_and_its_loss_is_the_last_real_one():
    stock = read_history(RUNS / "stock")
    findings = explain(stock)
    said = status(stock, findings, False)
    assert said["verdict"] == "wrong"
    assert said["state"]["en"] == "Finished, step 60"
    (loss, norm, *_) = tiles(stock, findings, False)
    assert (loss["value"], loss["verdict"]) == ("5.63", "wrong")
    assert loss["note"]["en"] == "the last real one; none from step 13"
    values = next(finding.values for finding in findings if finding.key == "explain.grad_spread")
    assert norm["value"] == f"{values['median']:.3g}"


def test_tiles_of_a_run():
    run = read_history(RUNS / "overfitting")
    findings = explain(run)
    by_label = {tile["label"]["en"]: tile for tile in tiles(run, findings, False)}
    assert list(by_label) == ["loss", "best evaluation loss", "gradient norm, median", "tokens/s", "memory", "time"]
    best = best_evaluation(run)
    assert best is not None
    assert (best.metric, best.value) == ("eval_loss", np.nanmin(run.evals["eval_loss"]))
    assert by_label["best evaluation loss"]["note"]["en"].startswith(f"at step {best.step} · token accuracy 0.")
    step, norm = run.finite("grad_norm")
    worst_step = int(step[np.argmax(norm)])
    assert by_label["gradient norm, median"]["note"]["en"] == f"highest {norm.max():.3g}, step {worst_step}"


EVALS = {"step": [10, 20, 30], "eval_loss": [1.0, 0.9, 1.2], "eval_f1": [0.2, 0.6, 0.7], "eval_mae": [0.5, 0.1, 0.3]}


@pytest.mark.parametrize(
    ("chosen", "greater", "label", "value", "note"),
    [
        ("f1", None, "best F1", "0.7", "at step 30 · evaluation loss 1.2"),
        ("eval_f1", True, "best F1", "0.7", "at step 30 · evaluation loss 1.2"),
        ("mae", None, "best mae", "0.1", "at step 20 · evaluation loss 0.9"),
        ("f1", False, "best F1", "0.2", "at step 10 · evaluation loss 1"),
        ("loss", None, "best evaluation loss", "0.9", "at step 20 · F1 0.6"),
        ("rouge", None, "best evaluation loss", "0.9", "at step 20 · F1 0.6"),
        (None, None, "best evaluation loss", "0.9", "at step 20 · F1 0.6"),
    ],
)
def test_the_metric_that_chooses_the_checkpoint_is_the_one_that_is_shown(chosen, greater, label, value, note):
    training = {"metric_for_best_model": chosen, "greater_is_better": greater}
    known = history(loss=falling(30), evals=EVALS, config={"training": training})
    tile = next(tile for tile in tiles(known, [], False) if tile["label"]["en"].startswith("best"))
    assert (tile["label"]["en"], tile["value"], tile["note"]["en"]) == (label, value, note)
    assert value in status(known, [], False)["best"]["en"]
    assert ("loss" in status(known, [], False)["best"]["ko"]) == (label == "best evaluation loss")


def test_a_loss_near_0_chooses_no_step_where_a_reward_is_trained():
    evals = {"step": [10, 20, 30], "eval_loss": [0.1, -0.2, 0.1], "eval_num_tokens": [9.0] * 3}
    known = history(loss=falling(30), evals={**evals, "eval_reward": [2.0, 2.5, 3.0]})
    assert best_evaluation(known) == Best("eval_loss", 20, -0.2)
    known.task = "grpo"
    assert best_evaluation(known) == Best("eval_reward", 30, 3.0)
    assert metrics_of([known, known])[0] == "eval_reward"


def test_an_evaluation_without_a_loss_or_without_a_number():
    known = history(loss=falling(30), evals={**EVALS, "eval_loss": [np.nan] * 3})
    assert best_evaluation(known) == Best("eval_f1", 30, 0.7)
    known = history(loss=falling(30), evals={"step": [10, 20], "eval_loss": [np.nan, np.inf]})
    assert best_evaluation(known) is None


def test_an_evaluation_between_two_steps_has_a_tile():
    known = history(loss=falling(30), evals={"step": [10.5, 20], "eval_loss": [1.0, 2.0]})
    (tile,) = [tile for tile in tiles(known, [], False) if tile["value"] == "1"]
    assert "step 10" in tile["note"]["en"]


def test_a_run_that_goes_on_says_how_long_it_will():
    known = history(loss=falling(50), step_seconds=2.0, eval_seconds_total=10.0, finished=False,
                    config={"training": {"max_steps": 150}})  # fmt: skip
    (time,) = [tile for tile in tiles(known, [], True) if tile["label"]["en"] == "time"]
    # 100 steps of 2 s, and a tenth of that again for evaluations
    assert time["note"]["en"] == "0:03:40 left, to step 150"
    (time,) = [tile for tile in tiles(known, [], False) if tile["label"]["en"] == "time"]
    assert time["note"]["en"] == "in all"


def test_a_log_without_step_times_has_those_of_its_last_line_or_of_its_bar():
    known = history(loss=falling(5), finished=False, kind="log")
    assert [tile["label"]["en"] for tile in tiles(known, [], False)] == ["loss"]
    known.progress = pd.DataFrame({"step": [3, 5], "elapsed_seconds": [30.0, 50.0], "eta_seconds": [70.0, 3600.0]})
    known.planned = 100
    assert tiles(known, [], False)[-1]["note"]["en"] == "1:00:00 left, to step 100"
    assert tiles(known, [], False)[-1]["value"] == "50.0 s"
    known.summary = {"train_runtime": 120.0}
    assert tiles(known, [], False)[-1]["value"] == "0:02:00"


def test_a_log_that_does_not_count_steps_is_said_to_have_lines():
    known = history(loss=falling(5), finished=False, kind="log")
    assert status(known, [], False)["state"]["en"] == "A log, up to step 5"
    known.numbered = False
    assert status(known, [], False)["state"] == {"en": "A log of 5 lines", "ko": "로그 5줄"}
    assert axes(known)["step"]["label"]["en"] == "line of the log"


def test_a_page_of_a_log_without_numbers_counts_its_lines_everywhere():
    evals = {"step": [20, 40], "eval_loss": [2.0, 1.9]}
    known = history(loss=[*falling(39), np.nan], grad_norm=[1.0] * 20 + [9.0] + [1.0] * 19, kind="log", evals=evals)
    known.numbered = False
    data = report_data(known)
    notes = {tile["label"]["en"]: tile["note"] for tile in data["tiles"]}
    assert notes["best evaluation loss"] == {"en": "at line 40", "ko": "40번째 줄"}
    assert notes["gradient norm, median"]["ko"] == "최고 9 (21번째 줄)"
    assert data["status"]["best"]["en"] == "best evaluation loss 1.9 at line 40"
    assert data["captions"]["loss"][0]["en"].startswith("Red crosses: no finite value (count 1, first at line 40)")
    known.numbered = True
    assert report_data(known)["status"]["best"]["en"] == "best evaluation loss 1.9 at step 40"


def test_no_steps_make_no_tiles():
    known = history(loss=falling(5))
    known.steps = known.steps.iloc[:0]
    assert tiles(known, [], False) == []
    assert status(known, [], True)["state"]["en"] == "Finished, step 0"
