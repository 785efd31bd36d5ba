"""One run: its death, its best steps as a set, its size and its cost."""

from __future__ import annotations

import numpy as np
import pytest
from lora_train.instrument.judge.noise import noise_of

from .build import explained, run, study

TURN = np.concatenate([np.linspace(2, 1, 10), np.linspace(1.02, 1.4, 10)])


def test_the_best_steps_are_a_set_that_noise_cannot_tell_apart():
    wobble = 0.05 * np.random.default_rng(0).standard_normal(20)
    (trial,) = study(run(TURN + wobble, steps=200)).trials
    assert trial.best_step in trial.best_steps
    assert 60 <= trial.best_steps.min() < 100 < trial.best_steps.max() <= 150
    (clear,) = study(run(TURN + 0.02 * wobble, steps=200)).trials
    assert len(clear.best_steps) < len(trial.best_steps)
    (plain,) = study(run([3.0, 1.0, 2.0], steps=30)).trials  # too few to smooth
    assert (plain.best_step, plain.level) == (20, 1.0)


def test_an_accuracy_is_best_where_it_is_highest():
    history = run([1.0, 1.0, 1.0], steps=30)
    history.evals["eval_accuracy"] = [0.5, 0.9, 0.7]
    history.config["training"] |= {"metric_for_best_model": "accuracy"}
    made = study(history)
    assert (made.metric, made.lower, made.trials[0].best_step) == ("eval_accuracy", False, 20)
    assert made.shown(made.trials[0].level) == "0.9"


@pytest.mark.parametrize(
    ("columns", "dies"),
    [
        ({"loss": np.linspace(2, 1, 100)}, False),
        ({"loss": np.where(np.arange(100) < 30, 2.0, 9.0)}, True),
        ({"loss": np.full(100, np.nan), "nonfinite_micro_batches": 1.0}, True),
    ],
)
def test_it_is_dead_where_its_end_says_nothing(columns, dies):
    (trial,) = explained(run(np.full(8, 1.0), **columns)).trials
    assert (trial.death is not None) is dies


def test_its_last_evaluations_that_are_not_finite_are_its_death():
    history = run(np.array([1.0, 0.9, np.nan, np.nan]))
    history.nan_evals = (75, 100)
    assert study(history).trials[0].death is not None
    history.nan_evals = (25,)
    assert study(history).trials[0].death is None


def test_rows_of_a_step_and_seconds():
    history = run(settings={"training.gradient_accumulation_steps": 4})
    history.env["processes"] = 2
    (trial,) = study(history).trials
    assert (trial.batch, trial.seconds) == (64, 50.0)
    del history.config["training"]["per_device_train_batch_size"]
    assert study(history).trials[0].batch is None


def test_the_wobble_is_that_of_the_noise_model():
    values = 1 + 0.01 * np.random.default_rng(1).standard_normal(30)
    (trial,) = study(run(values, steps=300)).trials
    assert trial.noise.sigma == noise_of(values, 0.0).sigma
