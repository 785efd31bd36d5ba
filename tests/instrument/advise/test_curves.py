"""Where the best step lies over several runs, and what the end still gained."""

from __future__ import annotations

import numpy as np
import pytest
from lora_train.instrument.advise.curves import contradicts, ending, region, usable

from .build import run, study

S = np.arange(1, 41) / 40
FALLS = 1.5 - 0.3 * S
TURNS = 1.2 + 0.3 * np.abs(S - 0.45)
RISES = 1.2 + 0.5 * np.clip((S - 0.05) / 0.06, 0, 1)
CALM = 1.2 + 0.3 * np.exp(-S / 0.05)


def trials(course: np.ndarray, n: int = 3, noise: float = 0.001):
    random = np.random.default_rng(0)
    return study(*(run(course + noise * random.standard_normal(40), steps=400) for _ in range(n))).trials


@pytest.mark.parametrize(
    ("course", "where"),
    [(FALLS, "late"), (TURNS, "middle"), (RISES, "early"), (CALM, "unclear"), (0 * S + 1, "unclear")],
)
def test_the_region_of_the_best_step(course, where):
    assert region(trials(course), sigma=0.01).where == where


def test_a_lead_that_another_seed_would_undo_decides_nothing():
    assert region(trials(FALLS), sigma=0.1).where == "unclear"
    assert region(trials(FALLS, noise=0.3), sigma=0.001).where == "unclear"


@pytest.mark.parametrize(("course", "kind"), [(FALLS, "falling"), (CALM, "flat"), (TURNS, "rose")])
def test_the_ending(course, kind):
    found = ending(trials(course), sigma=0.01)
    assert found is not None
    assert found.kind == kind
    assert np.sign(found.gain) == {"falling": 1, "rose": -1}.get(kind, np.sign(found.gain))


def test_noise_and_few_evaluations_leave_the_ending_open():
    unclear = ending(trials(CALM, noise=0.1), sigma=0.01)
    assert unclear is not None
    assert unclear.kind == "unclear"
    assert ending(study(run(CALM[:4])).trials, sigma=0.01) is None


def test_a_trial_of_its_own_contradicts_what_all_say():
    (late,), (early,) = trials(FALLS, 1), trials(RISES, 1)
    assert (contradicts(late, "early"), contradicts(late, "late")) == (True, False)
    assert (contradicts(early, "early"), contradicts(early, "late")) == (False, True)


def test_runs_that_were_cut_off_or_hardly_evaluated_have_no_course():
    whole, cut = run(CALM, steps=400), run(CALM, steps=400, planned=800)
    assert [trial.name for trial in usable(study(whole, cut, run(CALM[:3], steps=400)))] == ["t0"]
