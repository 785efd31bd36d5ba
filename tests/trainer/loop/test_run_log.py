"""What a step writes to metrics.jsonl, and the time that is left, as a run and a resumed run know it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lora_train.instrument.read.schema import Evaluation, StepLine, Summary, columns_of
from lora_train.instrument.read.store import MetricsLog, read_metrics
from lora_train.trainer.config.settings import with_settings
from lora_train.trainer.console import Console
from lora_train.trainer.data.batches import StepRows
from lora_train.trainer.data.examples import Example
from lora_train.trainer.loop.run_log import ROW_FIELDS, RunLog, StepFacts
from lora_train.trainer.saved.state import Progress

from .test_train import make_components, make_config


def facts(step: int, seconds: float) -> StepFacts:
    rows = [Example(row, np.arange(3, dtype=np.int32), np.arange(3) > 0) for row in (1, 2)]
    return StepFacts(step, 100, 50, 1300, 10, seconds, StepRows(step, [[rows]]))


def test_lines_hold_the_columns_of_the_table_in_its_order(tiny_models, tmp_path: Path):
    log = RunLog(
        MetricsLog(tmp_path, 3), Console(silent=True), make_components(make_config(tiny_models["llama"])), Progress()
    )
    row = {"loss": 2.5, "grad_norm": 0.25, "loss_scale": 1.0, "skipped": 0.0, "updates": 1.0}
    for step, loss in ((1, 2.5), (2, float("nan"))):
        log.expect(facts(step, 2.0))
        log.step(step, [(row | {"loss": loss}).get(name, 0.0) for name in ROW_FIELDS])
    log.evaluation(2, Evaluation(1.0, 0.5, 7.0, 1.0, 1.0))
    log.summary(n_rows=4, n_steps=2)
    log.close()
    first, second, evaluation, summary = read_metrics(tmp_path)
    assert list(first) == ["start", *columns_of(StepLine)]
    assert list(second) == ["start", *columns_of(StepLine), "rows"]
    assert list(evaluation) == ["start", "step", *columns_of(Evaluation)]
    assert list(summary) == ["start", *columns_of(Summary)]
    known = {"start": 3, "step": 1, "loss": 2.5, "grad_norm": 0.25, "tokens": 100, "tokens_per_second": 50.0}
    assert first.items() >= known.items()
    assert (first["skipped"], second["loss"], second["rows"]) == (False, None, [1, 2])
    assert (summary["train_runtime"], summary["train_samples_per_second"]) == (4.0, 1.0)


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


def test_a_gradient_of_exactly_zero_is_said_once_while_it_lasts(tiny_models, capsys):
    log = RunLog(None, Console(), make_components(make_config(tiny_models["llama"])), Progress())
    row = {"loss": 6.2, "grad_norm": 0.0, "loss_scale": 1.0, "updates": 1.0}
    for step, norm in enumerate([0.3, 0.0, 0.0, 0.4, 0.0, 0.0, 0.0, 0.0], start=1):
        log.expect(facts(step, 2.0))
        log.step(step, [(row | {"grad_norm": norm}).get(name, 0.0) for name in ROW_FIELDS])
    said = [line for line in capsys.readouterr().out.splitlines() if "exactly 0" in line]
    assert len(said) == 1
    assert "step 5: the gradient has been exactly 0 for 3 steps" in said[0]
