"""The time that is left, as a run and a resumed run know it."""

from __future__ import annotations

from typing import Any

import pytest
from lora_train.trainer.config.settings import with_settings
from lora_train.trainer.console import Console
from lora_train.trainer.loop.checkpoint import Progress
from lora_train.trainer.loop.evaluate import Evaluation
from lora_train.trainer.loop.run_log import RunLog, StepFacts

from .test_train import make_components, make_config


def facts(step: int, seconds: float) -> StepFacts:
    return StepFacts(step, 100, 50, 10, seconds, (1, 2))


def test_evaluations_and_saves_count_apart_from_the_steps_and_a_resumed_run_knows_their_cost(tiny_models):
    training: dict[str, Any] = {"max_steps": 20, "eval_strategy": "steps", "eval_steps": 5, "save_steps": 10}
    config = with_settings(make_config(tiny_models["llama"], **training), {"data.eval_fraction": 0.1})
    components = make_components(config)
    progress = Progress()
    log = RunLog(None, Console(silent=True), components, progress)
    for step in range(1, 6):
        log.expect(facts(step, 2.0))
    assert log.seconds_left(5) == 15 * 2.0
    log.evaluation(5, Evaluation(1.0, 0.5, 7.0, 1.0, 1.0))
    assert log.seconds_left(5) == 15 * 2.0 + 3 * 7.0
    for step in range(6, 11):
        log.expect(facts(step, 2.0))
    log.evaluation(10, Evaluation(1.0, 0.5, 9.0, 1.0, 1.0))
    log.saved(4.0)
    assert log.seconds_left(10) == 10 * 2.0 + 2 * 9.0 + 1 * 4.0
    assert progress.train_seconds == 20.0  # neither evaluation nor saving is in the rate

    resumed = Progress(step=10, eval_seconds_total=16.0, save_seconds_total=4.0, evaluations=[(5, 1.0), (10, 1.0)])
    again = RunLog(None, Console(silent=True), components, resumed)
    again.expect(facts(11, 3.0))
    assert again.seconds_left(11) == pytest.approx(9 * 3.0 + 2 * 8.0 + 1 * 4.0)
