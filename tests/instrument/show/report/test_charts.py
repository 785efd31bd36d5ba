"""What charts draw: gaps where there is no value, the finding's own numbers, axes that the source knows."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from lora_train.instrument.judge.explain import explain, read_history
from lora_train.instrument.read.store import read_metrics
from lora_train.instrument.show.report import charts
from lora_train.instrument.show.report.charts import (
    attempts,
    axes,
    captions,
    eval_metrics,
    lost_steps,
    marks,
    metric_name,
    other_charts,
    resource_charts,
    schedule_charts,
    series,
    stacked_time,
    training_charts,
)
from lora_train.instrument.show.report.data import incident

from ....conftest import ROOT
from ...judge.explain.build import falling, history

RUNS = ROOT / "tests" / "runs"


def test_zeros_that_a_stock_log_prints_for_nan_are_gaps_and_marks():
    stock = read_history(RUNS / "stock")
    lost = lost_steps(stock, explain(stock))
    assert lost == list(range(13, 61))
    loss = series(stock, lost)["loss"]
    assert loss[11] is not None
    assert loss[12:] == [None] * 48
    (own, *_) = marks(stock, lost, attempts(stock))
    assert (own["kind"], own["at"]["step"], own["on"]) == ("lost", lost, ("loss",))
    assert own["text"]["en"].startswith("not finite: what the log prints")


def test_zeros_that_are_so_small_a_loss_are_drawn():
    loss = np.concatenate([np.geomspace(0.5, 0.002, 40), np.zeros(10)])
    known = history(kind="log", loss=loss, grad_norm=0.01, learning_rate=1e-4)
    findings = explain(known)
    assert "explain.zero_rounded" in {finding.key for finding in findings}
    assert lost_steps(known, findings) == []
    assert series(known, [])["loss"][-1] == 0


def test_axes_are_those_that_the_source_knows():
    known = history(loss=[3.0, 2.0, 1.0], epoch=[0.5, 1, 1.5], tokens=[10, 20, 30], step_seconds=[60, 60, np.nan],
                    evals={"step": [2, 3], "eval_loss": [2.0, 1.5]})  # fmt: skip
    found = axes(known)
    assert list(found) == ["step", "epoch", "tokens", "time"]
    assert found["tokens"]["steps"] == [10, 30, 60]
    assert found["tokens"]["evals"] == [30, 60]
    assert found["epoch"]["evals"] == [1, 1.5]
    assert found["time"]["steps"] == [1, 2, 2]
    assert list(axes(history(loss=falling(10)))) == ["step"]


def test_an_axis_of_rows_needs_to_know_what_a_step_takes():
    size = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    known = history(loss=falling(3), config={"training": size}, evals={"step": [2], "eval_loss": [2.0]})
    assert axes(known)["rows"] == {"label": {"en": "rows", "ko": "행 수"}, "steps": [8, 16, 24], "evals": [16]}
    known.env = {"processes": 3}
    assert axes(known)["rows"]["steps"] == [24, 48, 72]
    for config in ({"training": {**size, "gradient_accumulation_steps": None}}, {},
                   {"training": size, "data": {"packing": True}}):  # fmt: skip
        assert "rows" not in axes(history(loss=falling(3), config=config))
    assert "rows" not in axes(history(kind="trainer", loss=falling(3), config={"training": size}))


def test_a_collapse_is_told_in_words():
    step = {"step": 3, "kind": "forward_overflow", "module": "m", "action": "rollback", "rows": [7]}
    change = "rollback=2 training.learning_rate=1e-05"
    tried = [{"change": change, "verified": True, "loss": 1.5}, {"change": "other=1", "verified": False}]
    one = {**step, "evidence": {"dtype": "float16", "rows_alone": []}, "remedies": tried}
    found = incident(history(loss=falling(3)), one)
    assert found["kind"]["en"] == "float16 overflow in the forward pass"
    assert found["kind"]["ko"].startswith("순전파에서 float16")
    (first, second) = found["remedies"]
    assert first["words"]["en"] == "back to a healthy copy, another learning rate"
    assert (first["change"], first["outcome"]) == (change, "taken")
    assert (second["words"]["en"], second["change"], second["outcome"]) == ("", "other=1", "failed")
    unknown = {**one, "evidence": {"rows_alone": []}, "remedies": []}
    assert incident(history(loss=falling(3)), unknown)["kind"]["ko"] == "forward_overflow"
    assert incident(history(loss=falling(3)), {**one, "kind": "<b>"})["kind"]["en"] == "<b>"


def test_the_band_is_the_findings():
    known = history(loss=falling(40), grad_norm=np.random.default_rng(0).lognormal(0, 0.5, 40))
    findings = explain(known)
    spread = next(finding.values for finding in findings if finding.key == "explain.grad_spread")
    drawn = training_charts(known, series(known, []), findings)
    (norm,) = [chart for chart in drawn if chart["id"] == "grad_norm"]
    assert (norm["band"]["low"], norm["band"]["high"]) == (spread["low"], spread["high"])
    (sentence,) = captions(drawn, [])["grad_norm"]
    assert f"{spread['low']:.3g} to {spread['high']:.3g}" in sentence["en"]


def test_captions_say_only_what_is_drawn():
    known = history(loss=falling(40), grad_norm=1.0)
    assert captions(training_charts(known, series(known, []), []), [])["loss"] == []
    known = history(loss=falling(40), skipped=[0, 1] + [0] * 38)
    drawn = training_charts(known, series(known, []), [])
    (sentence,) = captions(drawn, marks(known, [], []))["loss"]
    assert sentence["en"] == "Yellow ticks: skipped updates (count 1, first at step 2)."


def test_the_first_attempt_of_a_healed_step_is_kept():
    healed = read_history(RUNS / "healed")
    assert attempts(healed) == [{"step": 13, "loss": None, "grad_norm": None}]
    kinds = {mark["kind"]: mark["at"]["step"] for mark in marks(healed, [], attempts(healed))}
    assert kinds == {"dropped": [13], "collapse": [13]}


def test_values_of_steps_that_were_run_again_are_kept_in_their_order(tmp_path):
    run = shutil.copytree(RUNS / "healed", tmp_path / "run")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    again = [{**row, "start": 2, "loss": 1.0} for row in rows if row.get("step") in (50, 51)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, *again]))
    first = {row["step"]: row["loss"] for row in rows if row.get("step") in (50, 51)}
    assert [(one["step"], one["loss"]) for one in attempts(read_history(run))] == [(13, None), *first.items()]


def test_a_damaged_start_does_not_have_the_log_read_a_thousand_times(tmp_path, monkeypatch):
    run = shutil.copytree(RUNS / "healed", tmp_path / "run")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    last = {**json.loads(lines[-2]), "start": 10**9}
    (run / "metrics.jsonl").write_text("\n".join([*lines[:-2], json.dumps(last), lines[-1]]) + "\n")
    history, reads = read_history(run), []
    monkeypatch.setattr(charts, "read_metrics", lambda *a, **k: reads.append(a) or read_metrics(*a, **k))
    assert attempts(history) == [{"step": 13, "loss": None, "grad_norm": None}]
    assert len(reads) == 1


def test_evaluations_show_what_they_measured_and_not_how_long_they_took():
    evals = {"step": [5, 10], "eval_loss": [2.0, 1.5], "eval_accuracy": [0.5, 0.75], "eval_runtime": [9.0, 9.0],
             "eval_samples_per_second": [1.0, 1.0], "eval_rewards/margins": [0.1, 0.2], "epoch": [1, 2]}  # fmt: skip
    known = history(loss=falling(10), evals=evals)
    assert eval_metrics(known) == ["eval_accuracy", "eval_rewards/margins"]
    assert metric_name("eval_accuracy")["ko"] == "정확도"
    assert metric_name("eval_rewards/margins")["en"] == "rewards/margins"
    ids = [chart["id"] for chart in training_charts(known, series(known, []), [])]
    assert ids == ["loss", "eval_accuracy", "eval_rewards/margins"]


def test_columns_of_other_trainers_are_drawn_under_their_own_words():
    known = history(loss=falling(10))
    known.steps["rewards/chosen_mean"] = np.arange(10.0)
    (chart,) = other_charts(known)
    assert chart["title"]["en"] == "rewards/chosen mean"
    assert series(known, [])["rewards/chosen_mean"][-1] == 9


def test_a_schedule_that_stands_still_has_no_chart():
    known = history(loss=falling(10), learning_rate=1e-4, loss_scale=[4.0] * 5 + [2.0] * 5)
    assert [chart["id"] for chart in schedule_charts(series(known, []))] == ["loss_scale"]


def test_time_is_stacked_in_minutes():
    known = history(loss=falling(3), step_seconds=60, eval_seconds_total=[0, 30, 30], save_seconds_total=0)
    steps = series(known, [])
    found = stacked_time(steps)
    assert found == {"time_steps": [1, 2, 3], "time_evals": [1, 2.5, 3.5]}
    lines = [chart["lines"] for chart in resource_charts(steps | found) if chart["id"] == "time"]
    assert [[line["column"] for line in own] for own in lines] == [["time_evals", "time_steps"]]


@pytest.mark.parametrize(("task", "unit"), [("causal_lm", "nat/token"), ("seq_cls", "nat"), ("grpo", "")])
def test_the_unit_of_a_loss_is_its_tasks(task, unit):
    known = history(loss=falling(10))
    known.task = task
    assert training_charts(known, series(known, []), [])[0]["unit"] == unit
