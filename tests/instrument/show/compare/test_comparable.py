"""Only evaluations of the same rows, made in the same way, are ranked."""

from __future__ import annotations

from pathlib import Path

import pytest
from lora_train.instrument.judge.explain import read_history

from ....conftest import ROOT
from ...judge.explain.build import falling, history
from .logs import evaluated, folder, found, rows_of

RUNS = ROOT / "tests" / "runs"
RANKED = ("winner_rows", "winner_evals", "winner_if", "no_winner_rows", "no_winner_evals", "no_winner_many")


def ranked(findings: dict) -> list[str]:
    return [key for key in findings if key in RANKED]


def test_runs_that_hold_out_other_rows_are_not_ranked():
    findings = found([read_history(RUNS / name) for name in ("healthy", "overfitting")])
    assert findings["other_evaluation"].verdict == "watch"
    assert {"data.eval", "data.eval_fraction", "data.eval_limit"} <= set(
        findings["other_evaluation"].values["keys"].split(", ")
    )
    assert not ranked(findings)


def test_a_run_without_evaluations_is_named_and_the_others_are_judged():
    findings = found([read_history(RUNS / name) for name in ("healthy", "healthy", "healed")])
    assert findings["no_evaluation"].values["names"] == "C"
    assert "same_evaluation" in findings
    assert ranked(findings) == ["no_winner_evals"]


@pytest.mark.parametrize(
    "key", ["data.eval", "data.eval_limit", "data.cutoff_len", "data.train_on_inputs", "model.name_or_path"]
)
def test_every_setting_that_changes_what_a_loss_means_keeps_runs_apart(key: str):
    section, name = key.split(".")
    runs = [
        history(loss=falling(40), evals={"step": [40], "eval_loss": [loss]}, config={section: {name: value}})
        for loss, value in ((2.0, "a"), (1.0, "b"))
    ]
    findings = found(runs)
    assert findings["other_evaluation"].values["keys"] == key
    assert not ranked(findings)


def test_a_seed_matters_only_where_a_share_is_held_out():
    def runs(fraction: float) -> list:
        return [
            history(
                loss=falling(40),
                evals={"step": [40], "eval_loss": [loss]},
                config={"training": {"seed": seed}, "data": {"eval_fraction": fraction}},
            )
            for loss, seed in ((2.0132, 1), (1.0254, 2))
        ]

    assert found(runs(0.1))["other_evaluation"].values["keys"] == "training.seed"
    assert ranked(found(runs(0.0))) == ["winner_evals"]


def test_stored_rows_tell_whatever_the_settings_say(tmp_path: Path):
    paths = [folder(tmp_path / "a", rows_of(0)), folder(tmp_path / "b", rows_of(1), {"data": {"eval": "copy.jsonl"}})]
    findings = found([read_history(path) for path in paths])
    assert findings["same_rows"].values["n"] == 100
    assert ranked(findings) == ["no_winner_rows"]


def test_of_rows_that_overlap_only_the_common_ones_are_held_against_each_other(tmp_path: Path):
    # the mean of B is lower, for its other 80 rows are easy; on the 40 that both have it is worse
    easy = rows_of(5, n=120, first=60, noise=0.05)
    easy.loss_sum[40:] *= 0.1
    easy.loss_sum[:40] *= 1.3
    findings = found(
        [read_history(p) for p in (folder(tmp_path / "a", rows_of(4, noise=0.05)), folder(tmp_path / "b", easy))]
    )
    assert findings["some_rows"].values["n"] == 40
    assert (findings["winner_rows"].values["winner"], findings["winner_rows"].values["rows"]) == ("A", 40)


def test_rows_cut_into_other_tokens_are_other_rows(tmp_path: Path):
    other = rows_of(1)
    other.hash[:] += 1000
    findings = found([read_history(p) for p in (folder(tmp_path / "a", rows_of(0)), folder(tmp_path / "b", other))])
    assert findings["other_rows"].values["n"] == 0
    assert not ranked(findings)


def test_logs_are_held_against_each_other_only_if():
    rate = {"eval_runtime": [8.0] * 8, "eval_samples_per_second": [20.0] * 8}
    more = {"eval_runtime": [16.0] * 8, "eval_samples_per_second": [20.0] * 8}
    findings = found([evaluated([2.0] * 8, **rate), evaluated([1.0] * 8, **rate)])
    assert findings["same_count"].values["n"] == 160
    assert (findings["winner_if"].values["winner"], findings["winner_if"].verdict) == ("B", "undecided")
    findings = found([evaluated([2.0] * 8, **rate), evaluated([1.0] * 8, **more)])
    assert findings["other_count"].values["listed"] == "A 160, B 320"
    assert not ranked(findings)
    assert "unknown_rows" in found([evaluated([2.0] * 8), evaluated([1.0] * 8)])


def test_a_run_that_was_trained_on_its_evaluation_rows_is_not_ranked():
    runs = [history(loss=falling(40), evals={"step": [40], "eval_loss": [loss]}) for loss in (2.0132, 1.0254)]
    for run, exact in zip(runs, (0, 20), strict=True):
        run.env = {"eval_overlap": {"rows": 40, "exact": exact, "near": 2}}
    findings = found(runs)
    assert findings["trained_on_eval"].values["listed"] == "A 5%, B 55%"
    assert not ranked(findings)
    runs[0].env = runs[1].env
    assert ranked(found(runs)) == ["winner_evals"]


def test_a_classifier_and_a_language_model_have_no_common_unit():
    one, other = evaluated([2.0] * 8), evaluated([0.5] * 8)
    other.task = "seq_cls"
    findings = found([one, other])
    assert findings["other_tasks"].values["listed"] == "A causal_lm, B seq_cls"
    assert not ranked(findings)
    assert "loss_better" not in findings
