"""Bins: full, whole, the same number in every epoch, and the same rows whatever the processes are."""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from lora_train.trainer.collapse.handle import capsule
from lora_train.trainer.collapse.recorded import RecordedPlan, recorded_rows
from lora_train.trainer.data.batches import Plan
from lora_train.trainer.data.examples import Dataset
from lora_train.trainer.data.packing import epoch_bins, fill_bins
from lora_train.trainer.loop.snapshots import Snapshot
from lora_train.trainer.saved.state import Progress

from ..loop.test_train import make_components, make_config
from .test_batches import example

LENGTHS = [3 + (7 * row) % 12 for row in range(30)]
DATASET = Dataset("rows", [example(row, length, 1) for row, length in enumerate(LENGTHS)])


def rows_of(plan: Plan, steps: range) -> list[int]:
    return [e.row for step in steps for micro in plan.micro_batches(step) for e in micro]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=200))
def test_bins_hold_every_row_once_and_none_could_be_spared(lengths):
    bins = fill_bins(lengths, 40)
    assert sorted(length for inside in bins for length in inside) == sorted(lengths)
    assert max(map(sum, bins)) <= 40
    assert sum(2 * sum(inside) <= 40 for inside in bins) <= 1  # two half-empty bins would be one


def test_the_fullest_bin_with_room_is_filled_first():
    # 4 goes beside 6, where it leaves nothing, not beside 5
    assert fill_bins([6, 5, 4, 3], 10) == [(6, 4), (5, 3)]


def test_an_epoch_draws_other_rows_of_the_same_lengths_into_each_bin():
    bins = fill_bins(LENGTHS, 20)
    epochs = [epoch_bins(bins, LENGTHS, order, random.Random(0)) for order in (range(30), range(29, -1, -1))]
    assert [[LENGTHS[row] for row in inside] for inside in epochs[0]] == [
        [LENGTHS[row] for row in inside] for inside in epochs[1]
    ]
    assert epochs[0] != epochs[1]
    assert all(sorted(row for inside in epoch for row in inside) == list(range(30)) for epoch in epochs)


def test_an_epoch_of_bins_visits_every_row_once_and_every_epoch_has_as_many_steps():
    plan = Plan(DATASET, 2, 2, seed=3, bin_tokens=20)
    per_epoch = plan.steps_per_epoch
    assert per_epoch == -(-len(fill_bins(LENGTHS, 20)) // 4) < Plan(DATASET, 2, 2, seed=3).steps_per_epoch
    epochs = [rows_of(plan, range(1 + e * per_epoch, 1 + (e + 1) * per_epoch)) for e in range(3)]
    assert all(sorted(epoch) == list(range(30)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    for micro in (micro for step in range(1, per_epoch + 1) for micro in plan.micro_batches(step)):
        assert sum(len(e.input_ids) for e in micro) <= 2 * 20
    assert plan.n_rows(per_epoch * 4) >= 4 * 30


def test_any_step_of_bins_is_found_without_the_ones_before():
    forwards, alone = (Plan(DATASET, 2, 2, seed=3, bin_tokens=20) for _ in range(2))
    sequence = [forwards.micro_batches(step) for step in range(1, 12)]
    assert alone.micro_batches(11) == sequence[10]
    begun_again = Plan(DATASET, 2, 2, seed=3, begins_after=5, bin_tokens=20)
    assert begun_again.micro_batches(6) == sequence[0]


def test_two_processes_see_the_bins_of_one_with_twice_the_accumulation():
    one = Plan(DATASET, 2, 2, seed=0, bin_tokens=20)
    two = Plan(DATASET, 2, 1, seed=0, world_size=2, bin_tokens=20)
    assert one.steps_per_epoch == two.steps_per_epoch
    for step in range(1, one.steps_per_epoch + 1):
        ranks = [[e.row for e in own] for rank in (0, 1) for own in two.rows(step).own(rank) if own]
        assert ranks == [[e.row for e in micro] for micro in one.micro_batches(step)]
        assert len(two.rows(step).own(1)) == len(two.rows(step).own(0))


def test_a_row_that_is_left_out_moves_no_other():
    whole = Plan(DATASET, 2, 1, seed=0, world_size=2, bin_tokens=20)
    gone = whole.rows(1).own(0)[0][0].row
    less = replace(whole, skip=frozenset([gone]))
    kept = [e.row for e in whole.rows(1).own(0)[0] if e.row != gone]
    assert [[e.row for e in own] for own in less.rows(1).own(0)] == [kept]
    assert less.rows(1).own(1) == whole.rows(1).own(1)


def test_bins_are_part_of_the_fingerprint():
    plans = [Plan(DATASET, 2, 2, seed=0, bin_tokens=tokens) for tokens in (None, 20, 25)]
    assert len({plan.fingerprint() for plan in plans}) == 3


def test_a_capsule_gives_every_process_its_own_bins_back(tiny_models):
    components = make_components(make_config(tiny_models["llama"]))
    plan = Plan(DATASET, 2, 1, seed=0, world_size=2, bin_tokens=20)
    tensors, facts = capsule(replace(components, plan=plan), Snapshot(Progress(), {}, {}, {}), 2, 0)
    again = RecordedPlan(DATASET, 2, 1, seed=0, world_size=2, recorded=recorded_rows(tensors, facts["rows"]))
    for step in (1, 2):
        for rank in (0, 1):
            rows = [[e.row for e in own] for own in plan.rows(step).own(rank)]
            assert [[e.row for e in own] for own in again.rows(step).own(rank)] == rows
