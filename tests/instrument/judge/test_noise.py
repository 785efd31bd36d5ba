"""The noise model: the scale of a wobble, and how alike its neighbours are."""

from __future__ import annotations

import numpy as np
import pytest
from lora_train.instrument.judge.noise import noise_of, quantum


def drawn(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(n)


def test_the_scale_is_that_of_the_wobble_and_not_of_the_trend():
    # the standard error of a scale from 4,000 values is 1.1%; the differences double the variance
    assert noise_of(drawn(4000)).sigma == pytest.approx(1.0, abs=0.08)
    assert noise_of(drawn(4000) + np.linspace(0, 400, 4000)).sigma == pytest.approx(1.0, abs=0.08)
    with_outliers = np.where(np.arange(4000) % 50 == 0, 50.0, drawn(4000))
    # 4% of the differences are cut off at 2.5 sigma: 1 + 0.04 x 2.5^2 of the variance, and again where that widens it
    assert noise_of(with_outliers).sigma == pytest.approx(1.0, abs=0.3)


def test_rounding_does_not_make_the_scale_vanish():
    """More than half of the differences are 0, so a median of them is too."""
    rounded = np.round(1.6 + 0.003 * drawn(200), 2)
    assert np.median(np.abs(np.diff(rounded))) == 0
    assert noise_of(rounded).sigma >= 0.005
    assert quantum(rounded) == pytest.approx(0.01)
    assert quantum(np.array([1.23456789])) == 0


def test_correlation_of_neighbours_is_seen_from_forty_on():
    independent = drawn(200)
    correlated = np.copy(independent)
    for i in range(1, 200):
        correlated[i] += 0.6 * correlated[i - 1]
    assert noise_of(correlated).rho > noise_of(independent).rho + 0.2
    assert noise_of(correlated[:30]).rho == 0


def test_the_steep_beginning_of_a_fall_is_no_wobble():
    """Of 15 values that begin 20 sigma above the rest; a sigma of 12 values is off by a quarter."""
    sigmas = []
    for seed in range(20):
        x = 20 * np.exp(-10 * np.linspace(0, 1, 15)) + np.random.default_rng(seed).standard_normal(15)
        sigmas.append(noise_of(x).sigma)
    assert np.median(sigmas) == pytest.approx(1.0, abs=0.35)
