"""The evaluation loss on runs built to wobble, turn, fall and end early, and what is said before there is an end."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from lora_train.instrument.judge.explain import explain
from lora_train.instrument.judge.explain.rules import evaluation, gradients
from lora_train.instrument.messages import catalogue

from ..build import falling, history

N = 100
NAN = float("nan")
WOBBLE = 0.01 * np.random.default_rng(0).standard_normal(200)


def key(finding) -> str | None:
    return finding.key.removeprefix("explain.") if finding else None


def evaluated(loss, *, train=None, steps: int = N, more: dict[str, Any] | None = None, **given: Any):
    loss = np.asarray(loss, "float64")
    evals = {"step": np.linspace(steps / max(len(loss), 1), steps, len(loss)), "eval_loss": loss, **(more or {})}
    return history(loss=falling(steps) if train is None else train, evals=evals, **given)


LEVEL = 1.6 * (1 + WOBBLE[:20])
TURNED = LEVEL + np.linspace(-0.6, 0.6, 20).clip(0)
DOWN = LEVEL + np.linspace(0.6, 0, 20)
SETTLED = LEVEL + 0.8 * np.exp(-np.arange(20))
LATE = np.maximum(0.6 - np.arange(20) / 20, 0)
RATE = np.where(np.arange(N) < 50, 1e-3, 1e-4)
CALMER = 1.6 + np.where(np.arange(40) < 20, 5, 0.5) * WOBBLE[:40]


@pytest.mark.parametrize(
    ("run", "rule", "expected"),
    [
        (evaluated(TURNED), evaluation.turned, "overfitting"),
        (evaluated(TURNED, train=falling(last=4.0)), evaluation.turned, "eval_rose"),
        (evaluated(TURNED, train=falling(last=3.0, noise=0.1, seed=2)), evaluation.turned, "eval_turned"),
        (evaluated(LEVEL), evaluation.turned, None),
        (evaluated(LEVEL), evaluation.course, "eval_unmoved"),
        (evaluated(DOWN), evaluation.course, "underfitting"),
        (evaluated(DOWN, finished=False), evaluation.course, "eval_falling"),
        (evaluated(SETTLED), evaluation.course, "eval_flat"),
        (evaluated(SETTLED, finished=False), evaluation.course, "eval_level"),
        (evaluated(SETTLED, learning_rate=np.full(N, 1e-3)), evaluation.course, "eval_flat"),
        # settled at a quarter of the way, where a rate that falls to 0 is still high; and with the rate
        (evaluated(SETTLED, learning_rate=np.linspace(1e-3, 0, N)), evaluation.course, "eval_flat"),
        (evaluated(LEVEL + LATE, learning_rate=np.linspace(1e-3, 0, N)), evaluation.course, "eval_flat_rate"),
        (evaluated([2.4, 1.9, 1.5, 1.2, 1.0]), evaluation.course, "eval_fell"),
        (evaluated([*LEVEL[:11], 1.9]), evaluation.course, "eval_last_rose"),
        (evaluated([1.6, 1.63, 1.58]), evaluation.course, "eval_few"),
        (evaluated([1.6, 1.5, 2.4, 2.9]), evaluation.turned, "overfitting"),
        (evaluated(LEVEL), evaluation.wobble, "eval_wobble"),
        (evaluated(CALMER, learning_rate=RATE), evaluation.wobble, "eval_wobble_rate"),
        (evaluated(1.6 + 0.001 * WOBBLE[:20]), evaluation.wobble, None),
        (evaluated([2.0, 1.8]), evaluation.gap, "eval_gap"),
        (evaluated([]), evaluation.missing, "eval_missing"),
        (evaluated([2.0]), evaluation.missing, None),
        (evaluated([2.0, 1.9]), evaluation.too_rare, "eval_rare"),
        (evaluated([2.0, 1.9, 1.8, 1.7, 1.6]), evaluation.too_rare, None),
    ],
)  # fmt: skip
def test_rule(run, rule, expected):
    assert key(rule(run)) == expected


def test_evaluations_that_are_no_number_are_named():
    found = evaluation.nonfinite(evaluated([NAN, NAN, 1.5]))
    assert found is not None
    assert (key(found), found.verdict, found.values["n"], found.values["of"]) == ("eval_nan", "wrong", 2, 3)
    broken = np.where(np.arange(N) > 50, NAN, 2.0)
    assert key(evaluation.nonfinite(evaluated([NAN, NAN], train=broken))) == "eval_nan_both"
    assert evaluation.nonfinite(evaluated([1.5])) is None


def test_rows_are_counted_from_time_and_speed():
    more = {"eval_runtime": np.full(20, 4000.0), "eval_samples_per_second": np.full(20, 0.309)}
    found = evaluation.wobble(evaluated(LEVEL, more=more))
    assert found is not None
    assert (key(found), found.values["rows"]) == ("eval_wobble_rows", 1236)


def test_rare_evaluations_that_are_dear_are_not_asked_for_more_of():
    """1,244 rows at 0.309 a second: ten of them are nine hours more."""
    more = {"eval_runtime": np.full(2, 4027.65), "eval_samples_per_second": np.full(2, 0.309)}
    found = evaluation.too_rare(evaluated([1.5, 1.4], more=more))
    assert found is not None
    assert (key(found), found.values["rows"], found.values["limit"]) == ("eval_rare_dear", 1245, 100)
    assert found.values["more"] == "8:57:01"
    hint = found.hint("en")
    assert hint is not None
    assert hint.startswith("data.eval_limit=100")
    slow = evaluated([1.5, 1.4], more={"eval_runtime": np.full(2, 4027.65)})
    assert key(evaluation.too_rare(slow)) == "eval_rare_slow"


@pytest.mark.parametrize(
    ("training", "steps", "expected"),
    [
        ({"eval_strategy": "steps", "eval_steps": 300}, 267, None),
        ({"eval_strategy": "steps", "eval_steps": 300}, 301, "eval_missing"),
        ({"eval_strategy": "steps", "eval_steps": 0.2}, 267, None),
        ({"eval_strategy": "epoch"}, 267, None),
        ({"eval_strategy": "no"}, 267, "eval_missing"),
        ({}, 267, "eval_missing"),
    ],
)
def test_nothing_is_missing_before_it_is_due(training, steps, expected):
    live = history(loss=falling(steps), config={"training": training}, finished=False, planned=1500)
    assert key(evaluation.missing(live)) == expected
    ended = history(loss=falling(steps), config={"training": training})
    assert key(evaluation.missing(ended)) == "eval_missing"


def test_a_live_run_is_not_too_rarely_evaluated_because_it_began_lately():
    assert evaluation.too_rare(evaluated([2.0, 1.9], finished=False, planned=1000)) is None
    assert key(evaluation.too_rare(evaluated([2.0, 1.9], finished=False, planned=110))) == "eval_rare"


def test_gradients_that_are_never_finite_are_named_where_they_are_printed():
    run = history(kind="log", loss=falling(), grad_norm=np.full(N, NAN))
    found = gradients.never_finite(run)
    assert found is not None
    assert (key(found), found.verdict) == ("gradient_never_finite", "wrong")
    assert gradients.never_finite(history(kind="log", loss=falling())) is None


def test_every_sentence_of_these_rules_is_said_in_both_languages():
    runs = [evaluated(loss) for loss in (TURNED, LEVEL, DOWN, SETTLED, [NAN, 1.5], [1.6, 1.63])]
    for finding in [finding for run in runs for finding in explain(run)]:
        assert finding.key in catalogue("ko")
        assert finding.sentence("ko") != finding.sentence("en")
