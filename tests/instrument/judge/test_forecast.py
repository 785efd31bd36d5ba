from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from lora_train.instrument.constants import FP16_MAX
from lora_train.instrument.judge.forecast import AT_ONCE, FIT_EVERY, HORIZON, Forecast, Forecaster

SEEDS = 20
OVERFLOWS = 65520.0  # the smallest magnitude that rounds to inf
Trend = Callable[[np.ndarray], np.ndarray]


def watch(absmax: np.ndarray, limit: float = FP16_MAX) -> dict[int, Forecast]:
    """Feeds [steps, sites], the first row as step 1, and gives the forecast of each site that was warned of."""
    forecaster, found = Forecaster(absmax.shape[1], limit), {}
    for row, values in enumerate(absmax):
        for forecast in forecaster.update(row + 1, values):
            assert forecast.site not in found
            assert forecast.step == row + 1
            found[forecast.site] = forecast
    return found


def scatter(noise: float, steps: int, sites: int = SEEDS) -> np.ndarray:
    return 1 + noise * np.random.default_rng(0).uniform(-1, 1, (steps, sites))


def planted(trend: Trend, noise: float, steps: int = 900, every: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """A drift that is seen until it overflows, and the step at which it does, which is at hand at every step."""
    absmax = trend(np.arange(steps, dtype=np.float64))[:, None] * scatter(noise, steps)
    actual = (absmax >= OVERFLOWS).argmax(axis=0) + 1
    assert (actual > 1).all()
    seen = (np.arange(steps)[:, None] + 1 < actual) & (np.arange(steps)[:, None] % every == 0)
    return np.where(seen, np.minimum(absmax, FP16_MAX), np.nan)[: actual.max()], actual


def leads_and_errors(trend: Trend, noise: float, **options: int) -> tuple[np.ndarray, np.ndarray]:
    """Steps from the warning to the overflow, and by what share of them the prediction is off; a value per seed."""
    absmax, actual = planted(trend, noise, **options)
    found = watch(absmax)
    assert sorted(found) == list(range(SEEDS))
    leads = np.array([actual[site] - found[site].step for site in range(SEEDS)])
    misses = np.array([abs(found[site].predicted_step - actual[site]) for site in range(SEEDS)])
    return leads, misses / leads


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.05])
@pytest.mark.parametrize(("start", "per_step"), [(20_000, 110), (3_000, 200), (1_000, 400)])
def test_foresees_a_linear_drift(start: float, per_step: float, noise: float):
    leads, errors = leads_and_errors(lambda t: start + per_step * t, noise)
    assert leads.min() >= 50
    assert errors.max() <= 0.2


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.05])
@pytest.mark.parametrize(
    ("start", "growth"), [(200, 0.01), (200, 0.03), (200, 0.05), (3_000, 0.01), (3_000, 0.02), (3_000, 0.04)]
)
def test_foresees_an_exponential_drift(start: float, growth: float, noise: float):
    leads, errors = leads_and_errors(lambda t: start * (1 + growth) ** t, noise)
    assert leads.min() >= 50
    assert errors.max() <= 0.2


@pytest.mark.parametrize(("noise", "lead"), [(0.0, 50), (0.01, 50), (0.05, 35)])
def test_foresees_the_fastest_drift_as_soon_as_it_is_told_from_a_line(noise: float, lead: int):
    """63 steps in all: 50 before the end, at +-5%, thirteen points fit a line nearly as well."""
    leads, errors = leads_and_errors(lambda t: 3_000 * 1.05**t, noise)
    assert leads.min() >= lead
    assert errors.max() <= 0.2


@pytest.mark.parametrize("every", [25, 100])
@pytest.mark.parametrize("trend", [lambda t: 20_000 + 110 * t, lambda t: 300 * 1.01**t], ids=["linear", "exponential"])
def test_foresees_the_drift_of_a_site_that_is_seldom_seen(trend: Trend, every: int):
    leads, errors = leads_and_errors(trend, 0.0, every=every)
    assert leads.min() >= 50
    assert errors.max() <= 0.05


def test_a_seldom_seen_site_may_scatter():
    leads, errors = leads_and_errors(lambda t: 20_000 + 110 * t, 0.02, every=25)
    assert leads.min() >= 50
    assert errors.max() <= 0.2


def test_a_rough_warning_beats_none():
    """Eight points at +-2% give the step to 10%: too rough far ahead, welcome when less than LATE steps are left."""
    absmax, actual = planted(lambda t: 20_000 + 110 * t, 0.02, every=50)
    found = watch(absmax)
    assert len(found) >= 0.75 * SEEDS
    assert min(actual[site] - forecast.step for site, forecast in found.items()) >= 40


def test_does_not_look_beyond_its_horizon():
    absmax, actual = planted(lambda t: 20_000 + 30 * t, 0.0, steps=1_600)
    forecast = watch(absmax[:, :1])[0]
    assert 150 <= actual[0] - forecast.step <= HORIZON + 5


def test_foresees_a_drift_seen_at_irregular_steps():
    absmax, actual = planted(lambda t: 20_000 + 110 * t, 0.01)
    found = watch(np.where(np.random.default_rng(1).random(absmax.shape) < 0.1, absmax, np.nan))
    assert sorted(found) == list(range(SEEDS))
    for site, forecast in found.items():
        assert actual[site] - forecast.step >= 50
        assert abs(forecast.predicted_step - actual[site]) <= 0.2 * (actual[site] - forecast.step)


@pytest.mark.parametrize("begins", [100, 600])
@pytest.mark.parametrize(
    "trend", [lambda t: 20_000 + 110 * t, lambda t: 3_000 * 1.02**t, lambda t: 200 * 1.05**t], ids=["110", "2%", "5%"]
)
def test_foresees_a_drift_that_begins_in_the_middle_of_a_run(trend: Trend, begins: int):
    leads, errors = leads_and_errors(lambda t: trend(np.maximum(t - begins, 0)), 0.01, steps=1_300)
    assert leads.min() >= 50
    assert errors.max() <= 0.2


def test_says_how_large_and_how_fast():
    line = watch(20_000 + 110 * np.arange(1, 400.0)[:, None])[0]
    assert line.peak == pytest.approx(20_000 + 110 * line.step, rel=2e-3)
    assert line.per_step == pytest.approx(110, rel=1e-6)
    assert line.predicted_step == pytest.approx((FP16_MAX - 20_000) / 110, abs=2)
    assert line.limit == FP16_MAX
    curve = watch(300 * 1.02 ** np.arange(1, 270.0)[:, None])[0]
    assert curve.peak == pytest.approx(300 * 1.02**curve.step, rel=2e-3)
    assert curve.per_step == pytest.approx(300 * 1.02**curve.step * np.log(1.02), rel=2e-3)
    assert curve.predicted_step == pytest.approx(np.log(FP16_MAX / 300) / np.log(1.02), abs=2)


def test_batches_out_of_line_do_not_move_the_forecast():
    absmax, actual = planted(lambda t: 20_000 + 110 * t, 0.02)
    odd = np.random.default_rng(2).random(absmax.shape) < 0.04
    found = watch(np.where(odd, absmax / 3, absmax))
    assert sorted(found) == list(range(SEEDS))
    for site, forecast in found.items():
        assert actual[site] - forecast.step >= 50
        assert abs(forecast.predicted_step - actual[site]) <= 0.2 * (actual[site] - forecast.step)


def test_the_limit_can_be_another():
    ours = watch(20_000 + 110 * np.arange(1, 400.0)[:, None])[0]
    small = watch((20_000 + 110 * np.arange(1, 400.0)[:, None]) / 128, limit=FP16_MAX / 128)[0]
    assert (small.step, small.predicted_step) == (ours.step, ours.predicted_step)
    assert small.per_step == pytest.approx(ours.per_step / 128)


def test_a_step_that_comes_again_replaces_what_was_seen():
    drift = 20_000 + 110 * np.arange(1, 400.0)
    expected = watch(drift[:, None])[0]
    forecaster, found = Forecaster(1), []
    for step in [*range(1, 150), *range(100, 180), 179, *range(150, 400)]:
        found += forecaster.update(step, drift[step - 1 : step])
    assert [f.predicted_step for f in found] == [expected.predicted_step]
    assert abs(found[0].step - expected.step) <= FIT_EVERY


def test_a_rolled_back_drift_is_forgotten():
    drift, forecaster = 20_000 + 110 * np.arange(1, 400.0), Forecaster(1)
    for step in range(1, 200):
        forecaster.update(step, 60_000 * scatter(0.05, 200, 1)[step])
    found = [forecast for step in range(1, 400) for forecast in forecaster.update(step, drift[step - 1 : step])]
    expected = watch(drift[:, None])[0]
    assert [f.predicted_step for f in found] == [expected.predicted_step]
    assert abs(found[0].step - expected.step) <= FIT_EVERY


def test_large_but_healthy_sites_do_not_keep_a_drifting_one_from_its_turn():
    drift, actual = planted(lambda t: 20_000 + 110 * t, 0.0)
    restless = 45_000 * scatter(0.3, len(drift), 2 * AT_ONCE)
    found = watch(np.hstack([restless, drift[:, :1]]))
    assert list(found) == [2 * AT_ONCE]
    assert actual[0] - found[2 * AT_ONCE].step >= 50


def _ramp(low: float, high: float, period: int, noise: float) -> np.ndarray:
    """group_by_length: each period begins with its longest batch; here also the other way round."""
    t = np.arange(600)[:, None] + np.random.default_rng(3).integers(0, period, SEEDS)
    falling = 1 - t % period / period
    rising = 1 - falling
    up = np.where(np.arange(SEEDS) % 2, rising, falling)
    return (low + (high - low) * up) * scatter(noise, 600)


def _saturating(start: float, rise: float, tau: float, noise: float) -> np.ndarray:
    return (start + rise * (1 - np.exp(-np.arange(600.0) / tau)))[:, None] * scatter(noise, 600)


def _warm_up(high: float, steps: int, noise: float, curved: bool = False) -> np.ndarray:
    done = np.minimum(np.arange(600) / steps, 1)
    return (10 * (high / 10) ** done if curved else 10 + (high - 10) * done)[:, None] * scatter(noise, 600)


def _outliers(level: float, share: float) -> np.ndarray:
    odd = np.random.default_rng(4).random((600, SEEDS)) < share
    return level * scatter(0.1, 600) * np.where(odd, 3, 1)


def _jump(low: float, high: float, noise: float) -> np.ndarray:
    return np.where(np.arange(600) < 300, low, high)[:, None] * scatter(noise, 600)


def _climb(low: float, high: float, noise: float) -> np.ndarray:
    """A jump that takes ten steps."""
    begins = 200 + np.random.default_rng(6).integers(0, 50, SEEDS)
    return (low + (high - low) * np.clip((np.arange(600)[:, None] - begins) / 10, 0, 1)) * scatter(noise, 600)


def _wandering(level: float) -> np.ndarray:
    """Neighbouring steps alike: correlation 0.95, deviation 16%."""
    noise, logs = np.random.default_rng(5).normal(size=(600, SEEDS)), np.zeros((600, SEEDS))
    for t in range(1, 600):
        logs[t] = 0.95 * logs[t - 1] + 0.05 * noise[t]
    return level * np.exp(logs)


def _seldom(absmax: np.ndarray, every: int) -> np.ndarray:
    sparse = np.full((len(absmax) * every, absmax.shape[1]), np.nan)
    sparse[::every] = absmax
    return sparse


HEALTHY = {
    "scatter": lambda: np.hstack([level * scatter(0.3, 600, 10) for level in (500, 5_000, 45_000)]),
    "outliers": lambda: np.hstack([_outliers(500, 0.02), _outliers(18_000, 0.05)]),
    "saturates soon": lambda: _saturating(200, 30_000, 20, 0.05),
    "saturates": lambda: _saturating(1_000, 40_000, 60, 0.05),
    "saturates exactly": lambda: _saturating(3_000, 40_000, 100, 0.0),
    "saturates late": lambda: _saturating(3_000, 40_000, 150, 0.02),
    "saturates noisily": lambda: _saturating(10_000, 30_000, 60, 0.15),
    "sawtooth": lambda: _ramp(5_000, 15_000, 50, 0.15),
    "slow sawtooth": lambda: _ramp(10_000, 30_000, 200, 0.15),
    "warm-up": lambda: np.hstack([_warm_up(500, 50, 0.05), _warm_up(10_000, 50, 0.05)]),
    "curved warm-up": lambda: np.hstack([_warm_up(500, 50, 0.05, True), _warm_up(500, 50, 0.0, True)]),
    "jump": lambda: np.hstack([_jump(3_000, 9_000, 0.02), _jump(5_000, 25_000, 0.2)]),
    "climb": lambda: np.hstack([_climb(5_000, 25_000, 0.0), _climb(5_000, 25_000, 0.02)]),
    "wandering": lambda: _wandering(20_000),
    "near the limit": lambda: np.hstack([np.full((600, 1), 60_000.0), 60_000 * scatter(0.02, 600)]),
    "at the limit": lambda: np.full((600, 1), FP16_MAX),
    "falling": lambda: np.linspace(60_000, 5_000, 600)[:, None] * scatter(0.05, 600),
    "never seen": lambda: np.full((600, 3), np.nan),
    "nothing but zeros": lambda: np.zeros((600, 3)),
    "seldom seen": lambda: _seldom(np.hstack([20_000 * scatter(0.3, 60), 45_000 * scatter(0.3, 60)]), 25),
}


@pytest.mark.parametrize("kind", HEALTHY)
def test_no_alarm_for_what_is_healthy(kind: str):
    assert watch(np.minimum(HEALTHY[kind](), FP16_MAX)) == {}
