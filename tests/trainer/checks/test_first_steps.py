"""What the first steps show: said once, and only where it helps."""

from __future__ import annotations

import math

from lora_train.trainer.checks.first_steps import TIMED, WATCHED, WORTH, FirstSteps


def told(norms, limit=1.0, n_steps=1000, left=7200.0) -> list[tuple[int, str]]:
    first = FirstSteps(limit, n_steps)
    return [(step, text) for step, norm in enumerate(norms, start=1) for text in first.step(step, norm, left)]


def test_the_hours_of_the_run_are_said_once():
    ((step, text),) = told([0.5] * 200)
    assert step == TIMED
    assert "about 2:00:00 at" in text
    assert f"{1000 - TIMED:,} steps" in text
    assert told([0.5] * 200, n_steps=WORTH - 1) == []


def test_clipping_that_binds_is_said_once_with_its_share():
    said = told([3.0] * 46 + [0.5] * 4 + [3.0] * 100, n_steps=10)
    assert [step for step, _ in said] == [WATCHED]
    assert "92%" in said[0][1]
    assert "training.max_grad_norm=1" in said[0][1]


def test_clipping_that_does_not_bind_is_not():
    assert told([3.0] * 44 + [0.5] * 6, n_steps=10) == []
    assert told([3.0] * 60, limit=0.0, n_steps=10) == []
    assert told([math.nan] * 60, n_steps=10) == []
    assert told([3.0] * (WATCHED - 1), n_steps=10) == []
