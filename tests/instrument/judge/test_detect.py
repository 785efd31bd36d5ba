"""Detectors on series built to trigger them, and on healthy ones."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from lora_train.instrument.judge.detect import (
    PATIENCE,
    WINDOW,
    Detectors,
    Diagnosis,
    Kind,
    LossWatch,
    UnderflowWatch,
    lost_share,
)
from lora_train.instrument.read.store import COLUMNS, Site

SITES = [
    Site(at, f"layers.{at // 2}.mlp", tensor, (8,), "float16", at // 2)
    for at, tensor in enumerate(["out", "grad_in", "out", "grad_in", "out", "grad_in"])
]


def rows(lost: float = 0.0, null: bool = False, peak: float = 1.0) -> np.ndarray:
    """A step's statistics in which a share `lost` of 1,000 gradient values was rounded to zero."""
    values = np.zeros((len(SITES), len(COLUMNS)))
    values[:, COLUMNS.index("n")] = 1000
    values[:, COLUMNS.index("absmax")] = peak
    values[:, COLUMNS.index("n_zero")] = 0 if null else 1000 * lost
    values[:, COLUMNS.index("n_underflow")] = math.nan if null else 1000 * lost
    values[:, COLUMNS.index("n_subnormal")] = 1000 * lost if null else 0
    return values


def test_a_loss_that_leaves_for_good_is_seen_with_its_onset():
    watch = LossWatch()
    for step in range(1, 41):
        assert watch.step(step, 2.0 - step / 1000) is None
    found = None
    for step in range(41, 41 + WINDOW):
        found = found or watch.step(step, 2.6)
    assert found is not None
    assert (found.kind, found.step) == ("divergence", 41)
    # the last twelve healthy losses have their median at step 34.5
    assert found.evidence["best"] == pytest.approx(1.9655)
    assert found.evidence["limit"] == pytest.approx(1.9655 + 0.5)


def test_a_jump_above_every_earlier_loss_is_seen_whatever_the_scatter():
    """The losses of a real run whose learning rate was multiplied by 100 at step 14."""
    losses = [3.02, 3.66, 3.27, 2.87, 3.23, 2.23, 3.39, 2.52, 3.21, 2.95, 3.55, 2.76, 3.28, 2.35, 3.7, 3.93, 6.05, 5.41]
    losses += [6.15, 6.47, 5.44, 7.21, 5.71, 5.39, 5.39, 5.54, 5.75, 5.22, 5.07]
    watch = LossWatch()
    found = [watch.step(step, loss) for step, loss in enumerate(losses, start=1)]
    trouble = found[27]
    assert found[:27] == [None] * 27
    assert trouble is not None
    assert (trouble.kind, trouble.step) == ("divergence", 17)
    assert trouble.evidence["limit"] == pytest.approx(3.66 + max(0.5, trouble.evidence["best"] / 6))


def test_a_jump_after_a_dozen_steps_is_seen_although_its_first_steps_widened_the_scatter():
    """A real run in bf16 whose learning rate was multiplied by 100 at step 13; step 20 is rounded down."""
    losses = [3.17, 2.51, 2.69, 2.64, 2.36, 2.225, 2.887, 2.977, 1.859, 2.79, 2.273, 2.462, 3.711, 3.531, 6.829, 6.712]
    losses += [7.049, 6.696, 6.091, 6.1, 5.972, 6.582, 5.793, 5.837, 5.56, 5.706]
    watch = LossWatch()
    found = [watch.step(step, loss) for step, loss in enumerate(losses, start=1)]
    trouble = found[25]
    assert found[:25] == [None] * 25
    assert trouble is not None
    assert (trouble.kind, trouble.step) == ("divergence", 15)
    assert trouble.evidence["limit"] == pytest.approx(3.17 + 0.5)


def test_a_slow_climb_out_of_the_calm_losses_is_seen():
    """Another real run: the losses that climb are no longer calm, and raise no bar for those after them."""
    losses = [3.31, 3.45, 2.83, 3.28, 3.51, 3.24, 3.19, 2.96, 2.73, 2.66, 3.35, 3.56, 2.85, 3.07, 2.61, 3.93, 3.95, 4.3]
    losses += [4.67, 4.49, 5.21, 5.06, 5.21, 5.26, 5.5, 5.15, 5.14, 5.19, 4.9]
    watch = LossWatch()
    found = [watch.step(step, loss) for step, loss in enumerate(losses, start=1)]
    assert found[:28] == [None] * 28
    assert found[28] is not None
    assert (found[28].kind, found[28].step) == ("divergence", 18)


def test_a_young_run_above_its_first_loss_diverged_if_an_output_blew_up():
    losses = [3.27, 5.24, 9.09, 7.66, 5.85, 6.73, 6.37, 6.21, 5.99, 5.42, 4.87, 5.41, 5.84]
    for growth, expected in ((4.0, "divergence"), (1.0, None)):
        detectors = Detectors(SITES, fp16=False)
        trouble = None
        for step, loss in enumerate(losses, start=1):
            trouble = trouble or detectors.step(step, loss)
            detectors.rows(step, rows(peak=2.0 * growth**step))
        assert (trouble.kind if trouble else None) == expected


def test_a_run_that_is_worse_than_the_untrained_model_is_seen():
    watch = LossWatch()
    losses = [2.7, 5.5, 8.0, 6.5, 6.1, 5.9, 6.0, 6.3, 5.8, 5.9, 5.7, 5.9, 5.8]
    found = [watch.step(step, loss) for step, loss in enumerate(losses, start=1)]
    assert found[: WINDOW - 1] == [None] * (WINDOW - 1)
    trouble = found[WINDOW - 1]
    assert trouble is not None
    assert (trouble.kind, trouble.step, trouble.evidence["best"]) == ("divergence", 2, 2.7)


@pytest.mark.parametrize("seed", range(20))
def test_noise_sawtooth_and_a_single_spike_are_no_divergence(seed):
    noise = np.random.default_rng(seed)
    watch = LossWatch()
    for step in range(1, 601):
        sawtooth = 0.4 * (step % 50) / 50  # group_by_length
        loss = (1.6 + 0.5 * math.exp(-step / 100) + sawtooth) * noise.lognormal(0, 0.3)
        assert watch.step(step, 30.0 if step == 300 else loss) is None


@pytest.mark.parametrize("null", [False, True], ids=["counted", "subnormal"])
def test_lost_gradients_are_seen_after_a_few_steps(null):
    watch = UnderflowWatch(SITES)
    found = [watch.step(step, rows(lost=0.8, null=null)) for step in range(5, 5 + PATIENCE)]
    assert found[:-1] == [None] * (PATIENCE - 1)
    assert found[-1] is not None
    # the first in the order of the backward pass
    assert (found[-1].kind, found[-1].step, found[-1].module) == ("scale_underflow", 5, "layers.2.mlp")
    assert found[-1].evidence["lost_share"] == pytest.approx(0.8)


def test_a_gradient_that_is_all_zero_is_lost_and_a_partly_masked_one_is_not():
    values = rows()
    values[:, COLUMNS.index("n_zero")] = 1000
    assert lost_share(SITES, values) == 1.0
    # unsupervised positions have zero gradients by construction: zero is not underflow
    values[:, COLUMNS.index("n_zero")] = 900
    assert lost_share(SITES, values) == 0.0
    watch = UnderflowWatch(SITES)
    assert [watch.step(step, rows(lost=0.3)) for step in range(10)] == [None] * 10


def test_a_blow_up_before_an_overflow_is_a_divergence_and_a_drift_is_not():
    detectors = Detectors(SITES, fp16=True)
    for step in range(1, 8):
        detectors.step(step, 2.0)
        detectors.rows(step, rows(peak=50000.0 + 1000 * step))
    assert detectors.before_overflow(8) is None
    blown = Detectors(SITES, fp16=True)
    for step, peak in [(1, 3.0), (2, 4.0), (3, 3000.0), (4, 50000.0)]:
        blown.step(step, 2.0)
        blown.rows(step, rows(peak=peak))
    trouble = blown.before_overflow(5)
    assert trouble is not None
    assert (trouble.kind, trouble.step) == ("divergence", 3)
    assert trouble.evidence["growth"] == pytest.approx(50000 / 3)


def test_one_hard_batch_before_a_bad_step_is_no_divergence():
    watch = LossWatch()
    for step, loss in enumerate([1.9, 2.7, 1.8, 2.0, 1.9, 2.1, 2.0, 3.9], start=1):
        watch.step(step, loss)
        assert watch.before_overflow(step + 1) is None
    for step in (9, 10):
        watch.step(step, 7.0)
    trouble = watch.before_overflow(11)
    assert trouble is not None
    assert (trouble.kind, trouble.step) == ("divergence", 8)


def test_a_diagnosis_as_json_has_no_number_that_json_has_not():
    found = Diagnosis(Kind.FORWARD_OVERFLOW, 3, "a.b", "forward", [1, 2], {"absmax": math.inf, "rows_alone": (1,)})
    assert found.as_json()["evidence"] == {"absmax": None, "rows_alone": [1]}


def test_a_kind_is_its_name_in_files_and_sentences_and_nothing_else_is_one():
    assert f"{Kind.BAD_WEIGHT} {Kind.BAD_WEIGHT:>12}" == "bad_weight   bad_weight"
    assert str(Kind.DIVERGENCE) == "divergence" == Kind.DIVERGENCE
    assert json.dumps(Diagnosis(Kind.FORWARD_OVERFLOW, 3, None, "forward", [], {}).as_json()["kind"]) == (
        '"forward_overflow"'
    )
    with pytest.raises(ValueError, match="foward_overflow"):
        Kind("foward_overflow")
