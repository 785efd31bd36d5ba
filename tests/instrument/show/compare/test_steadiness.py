"""What makes a curve rougher: the setting where its repeats say so, chance where they do not."""

from __future__ import annotations

import numpy as np
import pytest
from lora_train.instrument.judge.explain import History
from lora_train.instrument.show.compare import compare_runs
from lora_train.instrument.show.compare.differences import repeated
from lora_train.instrument.show.compare.steadiness import spread_of, wobble_of

from ...judge.explain.build import history

N = 40


def run(seed: int, accumulation: int = 1, wobble: float = 0.05, spread: float = 0.5, start: str = "") -> History:
    draw = np.random.default_rng(seed + 100 * accumulation)
    made = history(
        loss=np.linspace(0.7, 0.4, N),
        grad_norm=np.exp(spread * draw.standard_normal(N)),
        evals={"step": list(range(1, N + 1)), "eval_loss": (0.6 * (1 + wobble * draw.standard_normal(N))).tolist()},
    )
    made.config = {
        "model": {"task": "seq_cls"},
        "training": {"seed": seed, "per_device_train_batch_size": 8, "gradient_accumulation_steps": accumulation},
    }
    made.env = {"start": 0, "weights_fingerprint": start or f"of seed {seed}"}
    return made


def keys(histories: list[History]) -> dict[str, dict]:
    return {finding.key: finding.values for finding in compare_runs(histories).findings}


def test_the_wobbles_of_two_runs_are_held_against_chance():
    apart = keys([run(0, wobble=0.08), run(0, 8, wobble=0.01)])
    assert apart["compare.wobble"]["factor"] == pytest.approx(8, rel=0.5)
    assert (apart["compare.wobble"]["widest"], apart["compare.wobble"]["calmest"]) == ("A", "B")
    assert "compare.wobble_alike" in keys([run(0), run(1)])


def test_a_setting_with_repeats_is_told_from_chance():
    calm = [run(seed, 8, wobble=0.01, spread=0.1) for seed in range(3)]
    rough = [run(seed, wobble=0.05, spread=0.8) for seed in range(3)]
    found = keys([*rough, *calm])
    wobble, norm = found["compare.repeats_wobble"], found["compare.repeats_norm"]
    assert (wobble["one"], wobble["other"]) == ("A, B, C", "D, E, F")
    assert wobble["low"] < wobble["factor"] < wobble["high"] < 1
    assert wobble["factor"] == pytest.approx(0.2, rel=0.4)
    assert norm["factor"] < 0.5
    alike = keys([*rough, *(run(seed + 10, 4) for seed in range(3))])
    assert {"compare.repeats_wobble_alike"} <= alike.keys()
    assert "compare.repeats_wobble" not in alike


def test_a_seed_of_repeats_is_no_second_setting():
    found = keys([run(0), run(1), run(0, 8), run(1, 8)])
    assert "compare.several" not in found
    assert "compare.several" in keys([run(0), run(1, 8)])
    assert repeated([run(0), run(1), run(0, 8), run(1, 8)]) == [[0, 1], [2, 3]]
    assert repeated([run(0), run(1), run(0, 8)]) == []


def test_whether_the_first_weights_were_the_same():
    assert "compare.same_start" in keys([run(0, start="a"), run(0, 8, start="a")])
    assert keys([run(0, start="a"), run(1, start="b")])["compare.other_start"]["n"] == 2
    resumed = run(0, start="a")
    resumed.env["start"] = 1
    assert not {"compare.same_start", "compare.other_start"} & keys([resumed, run(0, start="a")]).keys()
    silent = run(0)
    del silent.env["weights_fingerprint"]
    assert not {"compare.same_start", "compare.other_start"} & keys([silent, run(0)]).keys()


def test_too_few_evaluations_wobble_by_nothing_that_is_known():
    few = history(loss=np.ones(10), evals={"step": [1.0, 2.0], "eval_loss": [0.5, 0.6]})
    assert np.isnan(wobble_of(few))
    assert np.isnan(spread_of(few))
    assert keys([run(0), run(0)])["compare.both_losses"]["listed"].startswith("A 0.4")
