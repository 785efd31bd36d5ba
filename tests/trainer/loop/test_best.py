"""What a history of evaluations says."""

from __future__ import annotations

from math import nan
from typing import Any

import pytest
from lora_train.trainer.config.schema import TrainingSection
from lora_train.trainer.loop.best import best_step, best_steps, kept_steps, metric_of, stops_early
from lora_train.trainer.loop.evaluate import Evaluation


def section(**training: Any) -> TrainingSection:
    return TrainingSection(**training)


def test_the_best_is_the_lowest_loss_and_the_first_of_equals():
    history = [(10, 2.0), (20, 1.5), (30, 1.5), (40, nan), (50, 1.9)]
    assert best_step(section(), history) == 20
    assert best_step(section(greater_is_better=True), history) == 10
    assert best_step(section(metric_for_best_model="eval_token_accuracy"), history) == 10
    assert best_step(section(), []) is None
    assert best_step(section(), [(10, nan)]) is None


@pytest.mark.parametrize(
    ("metrics", "stops"),
    [([2.0, 1.9, 1.8], False), ([2.0, 2.0], False), ([2.0, 2.0, 2.0], True), ([2.0, 2.1, 1.9, 2.0], False),
     ([nan, nan], True), ([2.0, nan, 1.0], False)],
)  # fmt: skip
def test_patience_counts_evaluations_since_the_best(metrics, stops):
    history = [(10 * i, metric) for i, metric in enumerate(metrics, start=1)]
    assert stops_early(section(early_stopping_patience=2), history) is stops
    assert stops_early(section(), history) is False


def test_the_metric_is_chosen_by_name_with_or_without_its_prefix():
    evaluation = Evaluation(1.5, 0.25, 1.0, 1.0, 1.0)
    names = ("loss", "eval_loss", "token_accuracy", "eval_token_accuracy")
    assert [metric_of(section(metric_for_best_model=name), evaluation) for name in names] == [1.5, 1.5, 0.25, 0.25]


def test_of_the_best_so_many_are_kept():
    history = [(10, 2.0), (20, 1.5), (30, nan), (40, 1.5), (50, 1.9)]
    assert best_steps(section(), history, 3) == [20, 40, 50]
    assert best_steps(section(greater_is_better=True), history, 2) == [10, 50]
    assert kept_steps(section(), history) == []
    assert kept_steps(section(load_best_model_at_end=True), history) == [20]
    assert kept_steps(section(keep_best=2), history) == [20, 40]
    assert kept_steps(section(keep_best=9, load_best_model_at_end=True), history) == [20, 40, 50, 10]
