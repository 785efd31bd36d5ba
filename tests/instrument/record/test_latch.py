from __future__ import annotations

import torch
from lora_train.instrument.record.latch import MAX_SKIPS, PATIENCE, Latch

FINE, NAN = torch.tensor(2.0), torch.tensor(float("nan"))
YES, NO = torch.tensor(True), torch.tensor(False)


def test_a_loss_that_is_not_finite_sets_it_for_good():
    latch = Latch("cpu")
    assert not latch.update(FINE, NO, YES)
    assert latch.update(NAN, YES, YES)
    assert latch.update(FINE, NO, YES)


def test_the_back_offs_of_a_high_initial_scale_are_no_incident():
    latch = Latch("cpu")
    assert [bool(latch.update(FINE, YES, YES)) for _ in range(MAX_SKIPS)] == [False] * (MAX_SKIPS - 1) + [True]


def test_a_scale_that_cannot_fall_gets_a_second_and_a_third_batch():
    latch = Latch("cpu")
    assert [bool(latch.update(FINE, YES, NO)) for _ in range(PATIENCE)] == [False, False, True]
    latch = Latch("cpu")
    for bad in (YES, YES, NO, YES, YES, NO):
        assert not latch.update(FINE, bad, NO)


def test_a_scale_that_has_just_reached_its_floor_is_stuck_at_once():
    latch = Latch("cpu")
    assert [bool(latch.update(FINE, YES, can_fall)) for can_fall in (YES, YES, YES, NO)] == [False] * 3 + [True]


def test_without_loss_scaling_the_first_bad_gradient_counts():
    latch = Latch("cpu", patience=1)
    assert not latch.update(FINE, NO, NO)
    assert latch.update(FINE, YES, NO)
