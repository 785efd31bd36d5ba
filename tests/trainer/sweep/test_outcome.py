"""How a trial ended, in words."""

from __future__ import annotations

import shutil

import pytest
from lora_train.trainer.sweep.folder import Attempt
from lora_train.trainer.sweep.outcome import cause, hopeless, outcome_of
from lora_train.trainer.sweep.trial import OUT_OF_MEMORY

from ...conftest import ROOT
from .build import begun

RUNS = ROOT / "tests" / "runs"


@pytest.fixture
def attempt(tmp_path):
    """A trial that was taken, and the study that it is of."""
    study, _ = begun(tmp_path)
    one = Attempt(study.folder, 0)
    one.take()
    return one, study


def test_a_trial_that_ran_through_has_its_best_evaluation(attempt):
    one, study = attempt
    shutil.copytree(RUNS / "overfitting", one.run)
    found = outcome_of(one, 0, study, 12.34)
    assert (found["ended"], found["step"], found["steps"], found["seconds"]) == ("done", 30, 120, 12.3)
    assert found["value"] == min(value for _, value in found["curve"])
    assert "why" not in found


@pytest.mark.parametrize(
    ("code", "how", "says"),
    [
        (2, "refused", "lora.r is too large"),
        (OUT_OF_MEMORY, "memory", "lora.r is too large"),
        (1, "crash", "lora.r is too large"),
        (-9, "crash", "SIGKILL"),
    ],
)
def test_a_cause_is_what_the_process_said(attempt, code, how, says):
    one, study = attempt
    (one.claim / "output.txt").write_text("loading\nerror: lora.r is too large\nhint: make it smaller\n")
    found = outcome_of(one, code, study, 1)
    assert (found["ended"], found["value"]) == (how, None)
    assert all(says in text for text in found["why"].values())


@pytest.mark.parametrize(("code", "how"), [(0, "diverged"), (3, "collapse")])
def test_a_dead_run_has_its_sentence_in_both_languages(attempt, code, how):
    one, study = attempt
    shutil.copytree(RUNS / "stock", one.run)
    found = outcome_of(one, code, study, 1)
    assert found["ended"] == how
    assert "From step 13 on every forward pass was NaN" in found["why"]["en"]
    assert "13스텝부터" in found["why"]["ko"]


def test_without_a_word_the_exit_code_is_the_cause(attempt):
    assert cause(attempt[0], 7)["en"] == "exit code 7"


def test_hopeless_is_worse_than_the_median_at_the_same_step():
    def course(*values: float, lower: bool = True) -> dict:
        best = min(values) if lower else max(values)
        return {"curve": [[10 * (i + 1), v] for i, v in enumerate(values)], "value": best, "lower": lower}

    others = [course(3, 2, 1), course(4, 3, 2), course(5, 4, 3)]
    assert hopeless(course(4.1), others)
    assert not hopeless(course(4), others)
    assert not hopeless(course(5, 2.9), others)  # the best so far counts
    assert not hopeless(course(9), others[:2])  # too few have ended
    assert not hopeless({"curve": [], "value": None, "lower": True}, others)
    accurate = [course(0.5, lower=False), course(0.6, lower=False), course(0.7, lower=False)]
    assert hopeless(course(0.5, lower=False), accurate)
    assert not hopeless(course(0.7, lower=False), accurate)
