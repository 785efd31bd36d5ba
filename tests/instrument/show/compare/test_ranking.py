"""A winner is named where there is one, and not where the best of many is chance; both rates are counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lora_train.instrument.judge.explain import read_history
from lora_train.instrument.show.compare import compare_runs
from lora_train.instrument.show.compare.ranking import metrics_of, stands_out

from ...judge.explain.build import falling, history
from .logs import evaluated, folder, found, rows_of


def winner(runs: list) -> str | None:
    values = [f.values["winner"] for f in compare_runs(runs).findings if f.key.startswith("compare.winner")]
    return values[0] if values else None


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.002, 0.01, 0.03])
@pytest.mark.parametrize("n", [1, 3, 10, 40])
def test_of_thirty_equal_runs_none_wins(noise: float, n: int):
    """The wobble of evaluations, and seeds that scatter runs twice as far; at most 1 in 20."""
    named = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        levels = 2.0 * (1 + 2 * noise * rng.standard_normal(30))
        named += winner([evaluated(level * (1 + noise * rng.standard_normal(n))) for level in levels]) is not None
    assert named <= 1


@pytest.mark.parametrize("n", [3, 10, 40])
def test_of_two_equal_runs_none_wins(n: int):
    named = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        named += winner([evaluated(2.0 * (1 + 0.01 * rng.standard_normal(n))) for _ in range(2)]) is not None
    assert named <= 1


@pytest.mark.slow
@pytest.mark.parametrize("n", [6, 10, 40])
def test_the_run_that_is_a_tenth_better_is_found_among_thirty(n: int):
    right = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        levels = 2.0 * (1 + 0.005 * rng.standard_normal(30))
        levels[7] *= 0.9
        right += winner([evaluated(level * (1 + 0.01 * rng.standard_normal(n))) for level in levels]) == "H"
    assert right >= 19


def test_stored_rows_find_ten_percent_from_one_evaluation_each_and_nothing_where_nothing_is(tmp_path: Path):
    right = false = 0
    for seed in range(20):
        first, better, same = (
            rows_of(3 * seed + i, factor=factor, noise=0.05) for i, factor in enumerate((1, 1 / 1.1, 1))
        )
        names = zip((f"{seed}a", f"{seed}b", f"{seed}c"), (first, better, same), strict=True)
        a, b, c = (read_history(folder(tmp_path / name, rows)) for name, rows in names)
        right += winner([a, b]) == "B"
        false += winner([a, c]) is not None
    assert right >= 19
    assert false <= 1


def test_gaps_of_a_normal_sample_stand_out_in_one_of_fifty():
    rng = np.random.default_rng(0)
    assert np.mean([stands_out(rng.standard_normal(30).tolist()) for _ in range(2000)]) < 0.03
    assert stands_out([0.0, *np.linspace(10, 11, 12)])
    assert stands_out([1.0, 2.0])


def test_accuracy_decides_for_a_classifier():
    rate = {"eval_runtime": [8.0] * 3, "eval_samples_per_second": [250.0] * 3}
    runs = [
        evaluated([0.7, 0.6, 0.5], eval_accuracy=[0.6, 0.7, 0.70], **rate),
        evaluated([0.7, 0.65, 0.6], eval_accuracy=[0.7, 0.8, 0.85], **rate),
    ]
    findings = found(runs)
    assert (findings["winner_if"].values["metric"], findings["winner_if"].values["winner"]) == ("eval_accuracy", "B")
    assert findings["winner_if"].values["listed"] == "A 0.7 @20, B 0.85 @30"
    assert findings["other_metric"].values["metric"] == "eval_loss"


def test_accuracies_of_a_few_rows_are_not_told_apart():
    rate = {"eval_runtime": [8.0] * 6, "eval_samples_per_second": [20.0] * 6}
    runs = [evaluated([0.6] * 6, eval_accuracy=[level] * 6, **rate) for level in (0.7875, 0.775)]
    assert winner(runs) is None
    assert "no_winner_evals" in found(runs)


def test_the_named_metric_decides():
    config = {"training": {"metric_for_best_model": "f1", "greater_is_better": True}}
    runs = [
        history(
            loss=falling(40),
            evals={"step": [20, 40], "eval_loss": [1.0, 1.0], "eval_f1": [f1, f1], "eval_accuracy": [0.9, 0.9]},
            config=config,
        )
        for f1 in (0.5, 0.9)
    ]
    assert metrics_of(runs)[0] == "eval_f1"
    assert found(runs)["winner_evals"].values["winner"] == "B"


def test_the_lowest_of_many_is_not_the_level():
    """A run of 100 evaluations dips lower than one of 3 that is as good."""
    rng = np.random.default_rng(3)
    runs = [evaluated(2 + 0.05 * rng.standard_normal(100)), evaluated([2.0, 2.01, 1.99])]
    assert winner(runs) is None
