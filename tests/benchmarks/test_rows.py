"""What the parts of benchmarks.rows foretell, where the truth is known, and when they pass."""

from __future__ import annotations

import numpy as np
import pytest
from lora_train.instrument.judge.row_noise import RowNoise

from benchmarks.rows import prediction, without


def test_another_batch_is_foretold_with_an_interval_of_its_steps():
    noise = RowNoise(np.arange(100), 4, np.tile([8.0, 10.0], 50), np.tile([0.5, 1.5], 50), 20.0)
    told, half = prediction.foretold(noise, 8)
    assert told == pytest.approx(9 / 8 + 7 / 8)
    assert half == pytest.approx(1.645 * (1 / 8 + 7 / 8 * 0.5) / np.sqrt(99), rel=1e-3)


def test_points_pass_at_their_bars(capsys: pytest.CaptureFixture[str]):
    exact = np.array([[1.0, 1.04, 2.0, 2.05], [1.0, 0.97, 3.0, 2.9]])
    assert without.report(exact)
    assert not without.report(exact * [1, 1, 1, 1.1])
    case = np.array([[1.0, 0.2, 1.1], [1.0, 0.2, 0.9], [1.0, 0.2, 1.0]])
    assert prediction.report(np.array([case] * 5))
    off = np.array([case] * 3 + [case * [1, 1, 2]] * 2)
    assert not prediction.report(off)
    assert not prediction.report(np.array([case * [1, 2, 1]] * 5)), "wider than its bar"
    said = capsys.readouterr().out
    assert "inside the 90% interval in 60% of 5 cases (bar 80%)" in said
    assert said.count("SHORT") == 1 + 3 + 3
