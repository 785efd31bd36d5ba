from __future__ import annotations

import numpy as np
import pytest
import torch
from lora_train.trainer.data.batches import Plan, collate, epoch_order, in_batches
from lora_train.trainer.data.examples import Dataset, Example


def example(row: int, length: int, answer: int) -> Example:
    """`length` tokens row*100, row*100+1, ..., the last `answer` of them supervised."""
    ids = np.arange(row * 100, row * 100 + length, dtype=np.int32)
    return Example(row, ids, np.arange(length) >= length - answer)


DATASET = Dataset("rows", [example(row, 3 + row % 4, 1 + row % 2) for row in range(10)])


def test_collate_pads_right_and_points_at_the_token_before_each_target():
    batch = collate([example(1, 3, 1), example(2, 5, 2)], pad_token_id=7)
    assert batch.input_ids.tolist() == [[100, 101, 102, 7, 7], [200, 201, 202, 203, 204]]
    # flattened positions of tokens 101, 202 and 203, which predict 102, 203 and 204
    assert batch.positions.tolist() == [1, 7, 8]
    assert batch.targets.tolist() == [102, 203, 204]
    assert batch.input_ids.flatten()[batch.positions].tolist() == [101, 202, 203]
    assert (batch.rows, batch.n_tokens, batch.input_ids.dtype) == ((1, 2), 8, torch.int64)


def test_an_epoch_visits_every_row_once_and_the_next_in_another_order():
    plan = Plan(DATASET, batch_size=2, accumulation=2, seed=3)
    assert plan.steps_per_epoch == 3
    epochs = [
        [example.row for step in steps for micro in plan.micro_batches(step) for example in micro]
        for steps in ((1, 2, 3), (4, 5, 6))
    ]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10))
    assert epochs[0] != epochs[1]
    assert [len(micro) for micro in plan.micro_batches(3)] == [2]


def test_any_step_is_found_without_the_ones_before():
    forwards, alone = Plan(DATASET, 2, 2, seed=3), Plan(DATASET, 2, 2, seed=3)
    sequence = [forwards.micro_batches(step) for step in range(1, 8)]
    assert alone.micro_batches(7) == sequence[6]


def test_two_processes_see_the_rows_of_one_with_twice_the_accumulation():
    one, two = Plan(DATASET, 2, 2, seed=0), Plan(DATASET, 2, 1, seed=0, world_size=2)
    for step in (1, 2, 3):
        single = [example.row for micro in one.micro_batches(step) for example in micro]
        ranks = [example.row for rank in (0, 1) for own in two.rows(step).own(rank) for example in own]
        assert ranks == single
    # the last step of the epoch has nothing left for rank 1
    assert two.rows(3).own(1) == [[]]


@pytest.mark.parametrize(("epochs", "max_steps", "steps"), [(1, -1, 3), (2.5, -1, 8), (0.1, -1, 1), (5, 7, 7)])
def test_length_of_a_run(epochs, max_steps, steps):
    assert Plan(DATASET, 2, 2, seed=0).n_steps(epochs, max_steps) == steps


def test_order_is_fixed_for_good():
    """Recorded once: a run must be repeatable with a later version of this code."""
    assert epoch_order(8, seed=42, epoch=0) == (6, 3, 2, 7, 1, 5, 0, 4)


def test_fingerprint_changes_with_order_and_content():
    base = Plan(DATASET, 2, 2, seed=0).fingerprint()
    assert base == Plan(DATASET, 2, 2, seed=0).fingerprint()
    other = Dataset("rows", [*DATASET.examples[:-1], example(9, 4, 1)])
    assert len({base, Plan(DATASET, 2, 2, seed=1).fingerprint(), Plan(other, 2, 2, seed=0).fingerprint()}) == 3


def test_evaluation_batches_start_with_the_longest_rows():
    lengths = [[len(e.input_ids) for e in batch] for batch in in_batches(DATASET.examples, 4)]
    assert lengths == [[6, 6, 5, 5], [4, 4, 4, 3], [3, 3]]
    assert sorted(e.row for batch in in_batches(DATASET.examples, 4) for e in batch) == list(range(10))


def test_the_rows_of_a_step_know_what_is_counted_of_them():
    plan = Plan(DATASET, 2, 2, seed=3, world_size=2)
    rows = plan.rows(1)
    examples = [example for micro in plan.micro_batches(1) for example in micro]
    assert rows.examples == examples
    assert rows.numbers == tuple(example.row for example in examples)
    assert rows.n_supervised == rows.weight == sum(example.n_supervised for example in examples)
    assert rows.n_tokens == sum(len(example.input_ids) for example in examples)
    shares = [sum(example.n_supervised for example in share) for shares in rows.shares for share in shares]
    assert (len(shares), sum(shares)) == (4, rows.n_supervised)
    assert rows.n_supervised_squared == sum(n * n for n in shares) < rows.n_supervised**2
    assert rows.longest == max(len(example.input_ids) for example in examples)
    own = rows.own(1)[1]
    alone = rows.alone(1, 1, own[:1])
    assert alone.own(1) == [[], own[:1]]
    assert alone.examples == own[:1]
    assert alone.weight == rows.n_supervised > alone.n_supervised
    assert alone.n_supervised_squared == alone.n_supervised**2
    nothing = Plan(DATASET, 2, 2, seed=3, skip=frozenset(e.row for e in DATASET.examples)).rows(1)
    assert (nothing.examples, nothing.longest, nothing.n_supervised) == ([], 0, 0)


def test_a_step_has_no_more_micro_batches_than_there_are_rows_for():
    data = Dataset("data", [example(i, 4, 2) for i in range(5)])
    wide, many = Plan(data, 2**31 - 1, 2**31 - 1, seed=0), Plan(data, 2, 2**31 - 1, seed=0, world_size=2)
    assert (wide.most_rows, wide.most_micro_batches) == (5, 1)
    assert (many.most_rows, many.most_micro_batches) == (2, 2)
    assert len(many.shares(1)) == 2
    assert Plan(data, 2, 2, seed=0).most_micro_batches == 2
