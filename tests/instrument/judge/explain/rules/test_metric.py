"""Metrics beside the loss: which one is judged, which way is better, and confidence told apart from errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lora_train.instrument.judge.explain import explain
from lora_train.instrument.judge.explain.reconcile import BY_LOSS, BY_METRIC, CHOICE, MOVES
from lora_train.instrument.judge.explain.rules import metric
from lora_train.instrument.read.eval_rows import EvaluationRows

from .test_evaluation import LEVEL, TURNED, WOBBLE, evaluated, key
from .test_rows import run, said

RISES, FALLS = np.linspace(0.5, 0.9, 20) + WOBBLE[:20], np.linspace(0.9, 0.5, 20) + WOBBLE[:20]


def classified(share, loss=None, rows: int = 960):
    n = len(share)
    more = {
        "eval_accuracy": np.asarray(share),
        "eval_runtime": np.full(n, 10.0),
        "eval_samples_per_second": np.full(n, rows / 10),
    }
    return evaluated(np.full(n, 0.5) if loss is None else loss, more=more)


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.8 - 0.2 * np.exp(-np.arange(20)), "accuracy_rose"),
        (np.linspace(0.6, 0.8, 20), "accuracy_rises"),
        (np.where(np.arange(20) < 10, 0.8, 0.6), "accuracy_fell"),
        (0.8 + 0.3 * WOBBLE[:20], "accuracy_level"),
        ([0.80, 0.81], "accuracy_few"),
    ],
)
def test_accuracy_is_judged_by_what_its_rows_can_tell(share, expected):
    assert key(metric.course(classified(share))) == expected
    assert metric.course(evaluated(LEVEL)) is None


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("causal_lm", "eval_mean_token_accuracy"),
        ("preference", "eval_rewards/accuracies"),
        ("reward", None),
        ("grpo", "eval_reward"),
    ],
)
def test_pairs_and_rewards_are_not_judged_by_their_tokens(task, expected):
    names = ("eval_mean_token_accuracy", "eval_rewards/accuracies", "eval_reward")
    made = evaluated(LEVEL, more=dict.fromkeys(names, np.linspace(0.2, 0.8, len(LEVEL))))
    made.task = task
    found = metric.course(made)
    assert (found and found.values["metric"]) == expected


def test_of_a_few_accuracies_the_first_and_last_are_those_that_were_logged():
    found = metric.course(classified([0.40625, 0.7875, 0.775, 0.76875, 0.7625, 0.76875], rows=160))
    assert found is not None
    assert (key(found), found.values["first"], found.values["last"]) == ("accuracy_few", "40.6%", "76.9%")


def test_the_error_of_an_accuracy_is_that_of_counting():
    found = metric.error(classified([0.8, 0.8]))
    assert found is not None
    assert found.values["error"] == pytest.approx(200 * (0.8 * 0.2 / 960) ** 0.5)


def test_loss_and_accuracy_need_not_agree():
    same, worse = np.full(20, 0.8), np.where(np.arange(20) < 10, 0.8, 0.6)
    assert key(metric.apart(classified(same, TURNED))) == "loss_turned_alone"
    assert key(metric.apart(classified(worse, LEVEL))) == "accuracy_turned_alone"
    assert metric.apart(classified(worse, TURNED)) is None


@pytest.mark.parametrize(
    ("name", "value", "training", "expected"),
    [
        ("eval_f1", RISES, {}, "metric_rises"),
        ("eval_f1", np.where(np.arange(20) < 10, 0.8, 0.6) + WOBBLE[:20], {}, "metric_fell"),
        ("eval_pearson", RISES, {"metric_for_best_model": "pearson"}, "metric_rises"),
        ("eval_pearson", RISES, {}, None),
        ("eval_wer", FALLS, {"metric_for_best_model": "eval_wer"}, "lower_falls"),
        ("eval_wer", RISES, {"metric_for_best_model": "wer"}, "lower_rose"),
        ("eval_wer", RISES, {"metric_for_best_model": "wer", "greater_is_better": True}, "metric_rises"),
        ("eval_mine", 100 * RISES, {"metric_for_best_model": "mine"}, "metric_rises"),
        ("eval_f1", RISES, {"metric_for_best_model": "loss"}, "metric_rises"),
    ],
)
def test_the_metric_that_the_run_names_is_judged_its_own_way(name, value, training, expected):
    found = metric.course(evaluated(np.full(20, 0.5), more={name: value}, config={"training": training}))
    assert said(found) == expected
    if found is not None:
        assert found.sentence("en").startswith(name)


@pytest.mark.parametrize("named", ["f1", "eval_f1", "loss", "eval_loss", None])
def test_no_advice_goes_by_another_measure_than_the_run_names(named):
    """The loss turned at step 10 while F1 rises to the end, and the other way round."""
    training = {} if named is None else {"metric_for_best_model": named}
    rises = RISES + WOBBLE[:20]
    falls = np.where(np.arange(20) < 10, 0.8, 0.6) + WOBBLE[:20]
    turned = np.where(np.arange(20) < 10, 0.5, 0.9) + 0.3 * WOBBLE[:20]
    for loss, f1 in ((turned, rises), (turned, falls), (LEVEL, falls)):
        made = evaluated(loss, more={"eval_f1": f1}, config={"training": training})
        found = explain(made)
        ways = {MOVES[f.key][CHOICE] for f in found if f.advises and f.hint("en") and CHOICE in MOVES.get(f.key, {})}
        by = {"f1": {BY_METRIC}, "loss": {BY_LOSS}}.get((named or "").removeprefix("eval_"), ways)
        assert len(ways) <= 1
        assert ways <= by
    made = evaluated(turned, more={"eval_f1": rises}, config={"training": training})
    chosen = [f for f in explain(made) if f.key == "explain.choice_metric"]
    assert bool(chosen) == (named in ("f1", "eval_f1"))
    for finding in chosen:
        best = int(np.argmax(rises))
        assert finding.values["step"] == made.evals["step"][best]
        assert finding.values["loss_step"] == made.evals["step"][int(np.argmin(turned))]


def answered(rng: np.random.Generator, sharper: float, flips: int = 0, n: int = 1000) -> list[EvaluationRows]:
    """Two evaluations of a classifier of two labels: margins scaled, and some right answers turned."""
    margin = rng.normal(1.0, 1.2, n)
    later = sharper * margin + rng.normal(0, 0.02, n)
    turned = rng.choice(np.flatnonzero(margin > 0), flips, replace=False)
    later[turned] = -np.abs(later[turned])
    row, ones = np.arange(n, dtype="int32"), np.ones(n, "int32")
    return [
        EvaluationRows(row, np.log1p(np.exp(-m)), ones, row.astype("uint64"), (m > 0).astype("int32"))
        for m in (margin, later)
    ]


@pytest.mark.parametrize(("sharper", "flips", "least", "most"), [(3.0, 0, 38, 40), (3.0, 30, 0, 0), (1.0, 0, 0, 1)])
def test_confidence_is_named_where_the_errors_did_not_rise(sharper, flips, least, most, tmp_path: Path):
    said_so = [
        said(metric.confidence(run(tmp_path / str(seed), answered(np.random.default_rng(seed), sharper, flips))))
        for seed in range(40)
    ]
    assert least <= said_so.count("confidence") <= most


def test_confidence_needs_every_row_and_its_answer(tmp_path: Path):
    rows = answered(np.random.default_rng(0), 3.0)
    found = metric.confidence(run(tmp_path / "a", rows))
    assert found is not None
    wrong = int(np.sum(rows[0].n_correct == 0))
    assert (found.values["wrong"], found.values["n"], found.values["step"]) == (wrong, 1000, 10)
    assert found.values["now"] > found.values["then"]
    without = [EvaluationRows(r.row, r.loss_sum, r.n_tokens, r.hash) for r in rows]
    assert metric.confidence(run(tmp_path / "b", without)) is None
