"""When a run logs, evaluates and saves."""

from __future__ import annotations

import pytest
from lora_train.trainer.config.schema import TrainingSection
from lora_train.trainer.loop.schedule import schedule_of


def schedule(**training):
    return schedule_of(TrainingSection(**training), 20, 14)


STEPS = range(1, 21)


@pytest.mark.parametrize(
    ("training", "evaluations"),
    [
        ({"eval_strategy": "steps", "eval_steps": 6}, [6, 12, 18, 20]),
        ({"eval_strategy": "steps", "eval_steps": 0.25}, [5, 10, 15, 20]),
        ({"eval_strategy": "steps", "logging_steps": 8}, [8, 16, 20]),
        ({"eval_strategy": "epoch", "eval_steps": 6}, [14, 20]),
        ({"eval_strategy": "no"}, []),
    ],
)
def test_evaluations(training, evaluations):
    assert [step for step in STEPS if schedule(**training).evaluates(step)] == evaluations


@pytest.mark.parametrize(
    ("training", "checkpoints"),
    [({"save_steps": 7}, [7, 14, 20]), ({"save_strategy": "epoch"}, [14, 20]), ({"save_strategy": "no"}, []),
     ({"save_strategy": "best"}, [20])],
)  # fmt: skip
def test_checkpoints(training, checkpoints):
    assert [step for step in STEPS if schedule(**training).saves(step)] == checkpoints


def test_what_is_still_to_come():
    when = schedule(eval_strategy="steps", eval_steps=6)
    assert [when.left(when.eval_every, step) for step in (0, 6, 17, 18, 19, 20)] == [4, 3, 2, 1, 1, 0]
    assert when.left(when.eval_every, 0) == sum(when.evaluates(step) for step in STEPS)
    assert schedule().left(schedule().eval_every, 3) == 0


@pytest.mark.parametrize(
    ("training", "lines"),
    [
        ({"logging_steps": 8}, [8, 16, 20]),
        ({"logging_steps": 0.5, "logging_first_step": True}, [1, 10, 20]),
        ({"logging_strategy": "epoch"}, [14, 20]),
        ({"logging_strategy": "no"}, []),
    ],
)
def test_lines_of_the_log(training, lines):
    assert [step for step in STEPS if schedule(**training).logs(step)] == lines
