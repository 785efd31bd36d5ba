"""Tables of learning rates are those of transformers' schedules."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from lora_train.trainer.config.schema import METRIC_DRIVEN, TrainingSection
from lora_train.trainer.errors import UserError
from lora_train.trainer.loop.lr_schedule import lr_table, steps_of, warmup_steps
from transformers import get_scheduler
from transformers.trainer_utils import SchedulerType

KINDS = get_args(TrainingSection.model_fields["lr_scheduler_type"].annotation)
KWARGS: dict[str, dict[str, Any]] = {
    "warmup_stable_decay": {"num_decay_steps": 4},
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1},
}


def section(**training: Any) -> TrainingSection:
    return TrainingSection(learning_rate=1.0, **training)


def test_every_schedule_of_transformers_is_there():
    assert set(KINDS) == {kind.value for kind in SchedulerType}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in METRIC_DRIVEN])
def test_the_table_is_the_schedule(kind):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_scheduler(kind, optimizer, 3, 12, KWARGS.get(kind))
    expected = []
    for _ in range(13):
        expected.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    training = section(lr_scheduler_type=kind, warmup_steps=3, lr_scheduler_kwargs=KWARGS.get(kind, {}))
    assert lr_table(training, 12) == expected
    assert kind == "constant" or len(set(expected)) > 1


def test_a_plateau_lowers_the_rate_and_an_improvement_does_not():
    training = section(lr_scheduler_type="reduce_lr_on_plateau", lr_scheduler_kwargs={"patience": 1, "factor": 0.5})
    assert lr_table(training, 3, [2.0, 1.9, 1.8]) == [1.0] * 4
    assert lr_table(training, 3, [2.0, 2.0, 2.0]) == [0.5] * 4
    accuracy = training.model_copy(update={"metric_for_best_model": "token_accuracy"})
    assert lr_table(accuracy, 3, [0.1, 0.2, 0.3]) == [1.0] * 4
    assert lr_table(accuracy, 3, [0.3, 0.2, 0.1]) == [0.5] * 4


def test_greedy_follows_the_metric():
    training = section(lr_scheduler_type="greedy", lr_scheduler_kwargs={"patience": 0, "factor": 0.5})
    assert lr_table(training, 1, [])[0] == 1.0
    assert lr_table(training, 1, [2.0] + [3.0] * 12)[0] < 1.0


def test_arguments_that_do_not_fit_are_an_error():
    training = section(lr_scheduler_type="linear", lr_scheduler_kwargs={"no_such": 1})
    with pytest.raises(UserError, match="lr_scheduler_kwargs do not fit linear"):
        lr_table(training, 3)


def test_shares_of_all_steps_are_rounded_up():
    assert [warmup_steps(section(**given), 30) for given in ({"warmup_steps": 0.05}, {"warmup_ratio": 0.05})] == [2, 2]
    assert warmup_steps(section(warmup_steps=7, warmup_ratio=0.5), 30) == 7
    assert [steps_of(0.1, 25), steps_of(0.001, 25), steps_of(4, 25)] == [3, 1, 4]


def test_more_steps_than_can_be_planned_are_refused_at_once():
    with pytest.raises(UserError, match="2,000,000,000 steps are more than a run can plan: at most 10,000,000"):
        lr_table(TrainingSection(), 2 * 10**9)
