"""Direction and noise from the norms of rows: the truth is known, lengths differ, tails are heavy."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from lora_train.instrument.judge.row_noise import RowNoise, group_noise, heaviest_rows, log_ratio, row_noise, without

STEPS, ROWS, PARAMETERS, SPREAD = 50, 8, 40, 2.5
# Of logarithms of lengths; the lengths themselves are not rounded, so that their moments are known.
SIGMA = 0.6


def drawn(rng: np.random.Generator, power: float, degrees: int | None) -> RowNoise | None:
    """Steps of rows whose mean gradient is n^power (direction + noise); noise of Student's t with so many degrees."""
    n = np.exp(rng.normal(4, SIGMA, (STEPS, ROWS)))
    tail = 1.0 if degrees is None else rng.standard_t(degrees, n.shape)[..., None]
    noise = tail * rng.normal(0, SPREAD / np.sqrt(PARAMETERS), (*n.shape, PARAMETERS))
    noise[..., 0] += 1.0
    v = n[..., None] ** (1 + power) * noise
    total = n.sum(1)
    step = np.arange(1, STEPS + 1)
    frame = pd.DataFrame({"step": np.repeat(step, ROWS), "row": 0, "n_supervised": n.ravel()})
    frame["sumsq"] = np.square(v / total[:, None, None]).sum(-1).ravel()
    norm = np.sqrt(np.square(v.sum(1) / total[:, None]).sum(1))
    return row_noise(frame, pd.Series(norm, index=step))


def moment(power: float) -> float:
    """E n^power."""
    return float(np.exp(4 * power + power**2 * SIGMA**2 / 2))


def truth(power: float, degrees: int | None) -> tuple[float, float]:
    """|G|^2 and S of row_noise.py's head."""
    variance = 1.0 if degrees is None else degrees / (degrees - 2)
    one, mean = moment(1 + power), moment(1)
    squares = moment(2 + 2 * power) * (1 + variance * SPREAD**2)
    noise = squares - 2 * moment(2 + power) * one / mean + one**2 * moment(2) / mean**2
    return (one / mean) ** 2, noise / mean**2


@pytest.mark.slow
@pytest.mark.parametrize("degrees", [None, 8])
@pytest.mark.parametrize("power", [0.0, -0.5, 0.3])
def test_at_50_steps_of_8_rows_the_noise_scale_is_right_within_3_percent(power: float, degrees: int | None):
    """The mean of 400 runs, whose own standard error is below half a percent of what it is compared with."""
    rng = np.random.default_rng(7)
    found = []
    for _ in range(400):
        noise = drawn(rng, power, degrees)
        assert noise is not None
        found.append(((noise.row - noise.shared).mean(), noise.shared.mean()))
    noise, direction = np.mean(found, axis=0)
    square, spread = truth(power, degrees)
    assert direction == pytest.approx(square, rel=0.03)
    assert noise / direction == pytest.approx(spread / square, rel=0.03)


def test_what_is_not_known_tells_nothing():
    frame = pd.DataFrame({"step": [1, 1, 2], "row": [0, 1, 2], "n_supervised": [4, 5, 6], "sumsq": [1.0, 2.0, 3.0]})
    norms = pd.Series([2.0, 1.0], index=[1, 2])
    assert row_noise(frame.iloc[:0], norms) is None
    assert row_noise(frame.iloc[2:], norms) is None, "a step of one row"
    assert row_noise(frame.assign(sumsq=np.nan), norms) is None
    found = row_noise(frame, norms)
    assert found is not None
    assert found.steps.tolist() == [1], "a step of one row is left out"


def test_a_step_that_is_not_finite_is_left_out():
    frame = pd.DataFrame({"step": [1, 1, 2, 2], "row": 0, "n_supervised": 3, "sumsq": [1.0, 2.0, np.inf, 1.0]})
    found = row_noise(frame, pd.Series([2.0, np.nan], index=[1, 2]))
    assert found is not None
    assert found.steps.tolist() == [1]


SCALES = {"layers.0.q": 1.0, "layers.0.v": 2.0, "layers.1.q": 1.0, "layers.1.v": 2.0}


def recorded(steps: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of one length and the norms of their steps, by module: a direction of 1 and noise of the module's SCALES."""
    draw = np.random.default_rng(5)
    shares, norms = [], []
    for scale in SCALES.values():
        own = draw.normal(0, scale * SPREAD / np.sqrt(PARAMETERS), (steps, ROWS, PARAMETERS))
        own[..., 0] += 1.0
        shares.append(np.square(own / ROWS).sum(-1).ravel())
        norms.append(np.sqrt(np.square(own.mean(1)).sum(1)))
    step = np.arange(1, steps + 1)
    frame = pd.DataFrame({"step": np.repeat(step, ROWS), "row": 0, "n_supervised": 20})
    frame["shares"] = list(map(list, np.stack(shares, axis=1)))
    frame.attrs["modules"] = list(SCALES)
    return frame, pd.DataFrame(np.stack(norms, axis=1), index=step, columns=pd.Index(list(SCALES)))


def test_groups_of_modules_have_noise_scales_of_their_own():
    """v's is four times q's: the ratio is told within its interval, and that of two alike is not told from 1."""
    frame, norms = recorded(200)
    groups = {"q": ["layers.0.q", "layers.1.q"], "v": ["layers.0.v", "layers.1.v"], "half": list(SCALES)[:2],
              "gone": ["layers.7.q"]}  # fmt: skip
    found = group_noise(frame, norms, {"": list(SCALES), **groups})
    assert set(found) == {"", "q", "v", "half"}
    noise, shared = found["q"]
    assert len(noise) == 200
    assert (noise.mean(), shared.mean()) == (pytest.approx(2 * SPREAD**2, rel=0.05), pytest.approx(2, rel=0.2))
    ratio = log_ratio(found["v"], found["q"])
    assert ratio is not None
    assert abs(ratio[0] - np.log(4)) < 2 * ratio[1] < 0.8
    alike = log_ratio(found["half"], found[""])
    assert alike is not None
    assert abs(alike[0]) < 2 * alike[1]


def test_the_error_of_a_ratio_is_what_it_scatters_by():
    draw = np.random.default_rng(11)
    found = []
    for _ in range(400):
        base, one, other = draw.lognormal(0, 0.4, (3, 30))
        found.append(log_ratio((base * one, base), (other * base, base)))
    values, errors = np.array([ratio for ratio in found if ratio is not None]).T
    assert np.mean(np.abs(values) < 2 * errors) == pytest.approx(0.95, abs=0.03)


def test_a_direction_that_is_not_seen_has_no_ratio():
    ones = np.ones(5)
    assert log_ratio((ones, np.array([5.0, -1, -1, -1, -1])), (ones, ones)) is None
    assert log_ratio((ones[:1], ones[:1]), (ones[:1], ones[:1])) is None
    assert group_noise(recorded(3)[0].assign(shares=None), pd.DataFrame(), {"": []}) == {}


def test_a_step_without_a_row_is_the_mean_over_the_others():
    draw = np.random.default_rng(3)
    n, v = np.array([3.0, 1.0, 8.0]), draw.normal(size=(3, 7))
    g = v / n.sum()
    told = without(float(np.square(g.sum(0)).sum()), g @ g.sum(0), np.square(g).sum(1), n)
    assert told == pytest.approx([np.square((v.sum(0) - v[at]) / (12 - n[at])).sum() for at in range(3)], rel=1e-12)
    assert not np.isfinite(without(1.0, np.array([1.0]), np.array([1.0]), np.array([5.0]))).any()


def test_the_heaviest_rows_are_those_with_far_more_gradient_than_tokens():
    g = np.array([[3.0, 0.0], [0.0, 0.2], [0.1, 0.1]])
    one = {"micro_batch": 0, "process": 0, "row": [7, 8, 9], "n_supervised": [2, 30, 30],
           "sumsq": np.square(g).sum(1), "along": g @ g.sum(0)}  # fmt: skip
    steps = [
        {**one, "step": 1},
        {**one, "step": 2, "micro_batch": [0, 0, 1]},  # with what is another micro-batch's in common is not known
        {**one, "step": 3, "along": np.nan},
        {**one, "step": 4, "sumsq": [np.inf, 0.04, 0.02]},
        {**one, "step": 5, "n_supervised": [400, 2, 2]},
        {**one, "step": 6, "along": [one["along"][0], one["along"][1], np.nan]},
        {**one, "step": 7, "sumsq": [9.7, 1e-9, 1e-9], "along": [9.7, 0.0, 0.0]},  # nothing but rounding is left
    ]
    frame = pd.concat([pd.DataFrame(step) for step in steps])
    found = heaviest_rows(frame, pd.Series(np.sqrt(9.61 + 0.09), index=range(1, 8)))
    assert found[["step", "row"]].to_numpy().tolist() == [[1, 7]]
    assert found["share"][0] == pytest.approx(9 / 9.06)
    assert found["without"][0] == pytest.approx(np.hypot(0.1, 0.3) * 62 / 60)
