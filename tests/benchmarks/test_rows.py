"""What the parts of benchmarks.rows foretell, where the truth is known, and when they pass."""

from __future__ import annotations

import numpy as np
import pytest
from lora_train.instrument.judge.row_noise import RowNoise

from benchmarks.rows import prediction, without


def test_what_a_row_has_in_common_with_the_others_is_the_average_where_all_share_one_direction():
    """Of rows whose mean gradient is the direction and noise of its own, in very many dimensions."""
    draw = np.random.default_rng(0)
    n = np.array([5.0, 20.0, 40.0, 9.0, 31.0])
    v = n[:, None] * (draw.normal(0, 2 / np.sqrt(200_000), (5, 200_000)))
    v[:, 0] += n
    g = v / n.sum()
    squares, square = np.square(g).sum(1), float(np.square(g.sum(0)).sum())
    average = without.by_the_average(square, squares, n)
    assert average == pytest.approx(g @ g.sum(0), rel=0.02)


def test_another_batch_is_foretold_with_an_interval_of_its_steps():
    noise = RowNoise(np.arange(100), 4, np.tile([8.0, 10.0], 50), np.tile([0.5, 1.5], 50), 20.0)
    told, half = prediction.foretold(noise, 8)
    assert told == pytest.approx(9 / 8 + 7 / 8)
    assert half == pytest.approx(1.645 * (1 / 8 + 7 / 8 * 0.5) / np.sqrt(99), rel=1e-3)


def test_points_pass_at_their_bars(capsys: pytest.CaptureFixture[str]):
    exact = np.array([[1.0, 1.04, 2.0, 9.0, 2.05], [1.0, 0.97, 3.0, 9.0, 2.9]])
    assert without.report(exact)
    assert not without.report(exact * [1, 1, 1, 1, 1.1])
    case = np.array([[1.0, 0.2, 1.1], [1.0, 0.2, 0.9], [1.0, 0.2, 1.0]])
    assert prediction.report(np.array([case] * 5))
    off = np.array([case] * 3 + [case * [1, 1, 2]] * 2)
    assert not prediction.report(off)
    assert not prediction.report(np.array([case * [1, 2, 1]] * 5)), "wider than its bar"
    said = capsys.readouterr().out
    assert "inside the 90% interval in 60% of 5 cases (bar 80%)" in said
    assert said.count("SHORT") == 1 + 3 + 3
