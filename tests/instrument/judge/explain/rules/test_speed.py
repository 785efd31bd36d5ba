"""What evaluations cost, and why an ETA grew: the questions of a run whose evaluation takes more than an hour."""

from __future__ import annotations

import numpy as np
import pandas as pd
from lora_train.instrument.judge.explain.rules import speed

from ..build import falling, history

EVALS = {"step": [300.0, 600.0], "eval_loss": [0.6, 0.55], "eval_runtime": [4027.65, 4020.1]}
RATES = {"eval_samples_per_second": [0.309, 0.309], "eval_steps_per_second": [0.154, 0.155]}


def test_rates_of_an_evaluation_in_words():
    found = speed.evaluation(history(loss=falling(650), evals={**EVALS, **RATES}))
    assert found is not None
    assert (found.values["rows"], found.values["batch"]) == (1243, 2)
    assert found.sentence("en") == (
        "An evaluation reads 1,243 rows in 1:07:04: 0.309 rows/s (eval_samples_per_second), 0.154 batches/s of about 2 "
        "(eval_steps_per_second). These are speeds, not quality."
    )
    no_steps = {**EVALS, "eval_samples_per_second": RATES["eval_samples_per_second"]}
    found = speed.evaluation(history(loss=falling(650), evals=no_steps))
    assert found is not None
    assert found.key == "explain.eval_speed_rows"
    assert speed.evaluation(history(loss=falling(650), evals=EVALS)) is None


def test_an_evaluation_of_an_hour_is_too_many_rows_and_one_of_a_minute_is_not():
    found = speed.costly(history(loss=falling(650), evals={**EVALS, **RATES}))
    assert found is not None
    assert found.verdict == "watch"
    assert found.values["saved"] == "1:01:40"
    assert "data.eval_limit" in str(found.hint("en"))
    short = {**EVALS, **RATES, "eval_runtime": [60.0, 61.0]}
    assert speed.costly(history(loss=falling(650), evals=short)) is None


def test_an_eta_that_grew_by_what_evaluations_take():
    run = history(loss=falling(650), evals={**EVALS, **RATES})
    steps = np.arange(1, 651, 10)
    elapsed = 30.0 * steps + 4025 * (steps > 300) + 4025 * (steps > 600)
    run.planned = 1200
    bar = pd.DataFrame({"step": steps, "elapsed_seconds": elapsed, "eta_seconds": elapsed / steps * (1200 - steps)})
    run.progress = bar
    found = speed.eta(run)
    assert found is not None
    assert found.key == "explain.eta_eval"
    assert found.values["first"] == "10:00:00"
    run.evals = run.evals.iloc[:0]
    found = speed.eta(run)
    assert found is not None
    assert found.key == "explain.eta_grew"
    run.progress = bar.assign(elapsed_seconds=30.0 * steps, eta_seconds=30.0 * (1200 - steps))
    assert speed.eta(run) is None


def test_tokens_a_second_of_a_log():
    found = speed.throughput(history(kind="log", loss=falling(50), tokens_per_second=1234.0))
    assert found is not None
    assert found.sentence("ko") == "초당 1,234토큰입니다(모든 줄의 중앙값)."
    assert speed.throughput(history(loss=falling(50), tokens_per_second=1234.0)) is None
