"""Which trials follow: the best of a round, longer; rates beyond an edge."""

from __future__ import annotations

from typing import Any

from lora_train.trainer.sweep.rounds import Planned, Planner, best_of
from lora_train.trainer.sweep.study_file import RATE, constant_rates, read_study_file

from .build import RATES, begun, written


def ended(value: float | None, how: str = "done", step: int | None = 40, **more: Any) -> dict[str, Any]:
    return {"ended": how, "value": value, "step": step, "lower": True, **more}


def test_the_first_round_is_as_it_was_drawn(tmp_path):
    study, first = begun(tmp_path)
    assert Planner(study, first).known({}) == [Planned({RATE: rate}, 40) for rate in RATES]


def test_a_later_round_is_of_the_best_and_waits_for_all(tmp_path):
    rounds = [{"best": 2, "steps": 80}, {"best": 1, "steps": 160}]
    study, first = begun(tmp_path, seeds=2, rounds=rounds)
    planner = Planner(study, first)
    # by the mean of two seeds 0.3 is best, then 0.2; 0.1 died once
    outcomes = dict(enumerate(map(ended, (0.1, 2.0, 1.0, 3.0, 0.1, 2.0, 2.0, 3.0))))
    outcomes[4] = ended(0.05, "diverged")
    assert len(planner.known({i: outcomes[i] for i in range(7)})) == 8
    known = planner.known(outcomes)
    assert [(one.settings or {})[RATE] for one in known[8:]] == [0.3, 0.2, 0.3, 0.2]
    assert [(one.settings or {})["training.seed"] for one in known[8:]] == [42, 42, 43, 43]
    assert {(one.steps, one.round) for one in known[8:]} == {(80, 1)}
    # a linear schedule keeps the length of its decay
    longer = known[8].settings or {}
    assert longer["training.lr_scheduler_type"] == "warmup_stable_decay"
    assert longer["training.lr_scheduler_kwargs"]["num_decay_steps"] == 40 - longer["training.warmup_steps"]
    again = planner.known(outcomes | {i: ended(1.0 if i in (9, 11) else 2.0) for i in range(8, 12)})
    assert [((one.settings or {})[RATE], one.steps, one.round) for one in again[12:]] == [(0.2, 160, 2)] * 2
    # whoever comes later knows the same
    assert Planner(study, first).known(outcomes) == known


def test_of_what_is_better_when_larger_the_largest_goes_on():
    trials = [(Planned({"a": i}, 1), ended(value, lower=False)) for i, value in enumerate((0.5, 0.9, 0.7))]
    assert best_of(trials) == [{"a": 1}, {"a": 2}, {"a": 0}]


def test_beyond_an_edge_one_more_rate_is_tried(tmp_path):
    study = constant_rates(read_study_file(written(tmp_path)), "max_steps")
    first = [{RATE: rate} for rate in (1e-4, 3e-4, 1e-3)]

    def known(*steps: int | None) -> list[float]:
        outcomes = {i: ended(0.05, step=step) for i, step in enumerate(steps)}
        return [(one.settings or {})[RATE] for one in Planner(study, first).known(outcomes)][3:]

    assert known(30, 20, 25) == []  # inside
    assert known(None, None, None) == []  # nothing fits: no rate is the fastest
    assert known(None, 30, 20) == [3e-3]
    assert known(20, 30, None) == [3.3e-5]
    assert known(None, 30, 20, 25) == [3e-3]  # inside by now
    assert known(None, 40, 30, 20, 10, 5) == [3e-3, 9e-3, 0.027]  # and no further
