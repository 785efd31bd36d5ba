"""The parts of a row's score, and which of them decides."""

from __future__ import annotations

import numpy as np
import pandas as pd
from lora_train.trainer.data.examples import Example
from lora_train.trainer.rows.score import FLAGGED, NOT_FINITE, read_texts, scored


def example(row: int, ids: list[int], supervised_from: int = 1) -> Example:
    return Example(row, np.array(ids, np.int32), np.arange(len(ids)) >= supervised_from)


def ranks(**columns: list) -> pd.DataFrame:
    n = len(next(iter(columns.values())))
    plain = {"row": range(n), "n_supervised": [9] * n, "loss_z": [0.0] * n, "grad_z": [0.0] * n, "not_finite": [0] * n}
    return pd.DataFrame({**plain, **columns})


def test_the_largest_part_is_the_score():
    found = scored(ranks(loss_z=[4.0, 0.0, 0.0, 1.0], grad_z=[0.0, 6.0, 0.0, np.nan]), None, None).set_index("row")
    assert found["score"].to_dict() == {0: 4.0, 1: 4.0, 2: 0.0, 3: 1.0}
    assert found.index.tolist() == [0, 1, 3, 2]


def test_a_row_that_was_not_finite_is_the_worst():
    found = scored(ranks(loss_z=[9.0, np.nan], not_finite=[0, 1]), None, None)
    assert found["row"].tolist() == [1, 0]
    assert found["score"][0] == NOT_FINITE


def test_copies_and_near_copies_are_found():
    draw = np.random.default_rng(0)
    texts = draw.integers(0, 5000, (30, 40))
    near = texts[3].copy()
    near[[5, 17, 31]] = 4999
    examples = [example(row, list(ids)) for row, ids in enumerate(texts)]
    examples += [example(30, list(texts[8])), example(31, list(near)), example(32, [1, 2]), example(33, [1, 2])]
    found = read_texts(examples, cutoff=41)
    assert found.duplicate[30] == (8, 1.0)
    assert found.duplicate[31][0] == 3
    assert 0.6 < found.duplicate[31][1] < 0.9
    assert found.duplicate[33] == (32, 1.0), "too short for a run of tokens"
    assert set(found.duplicate) == {3, 8, 30, 31, 32, 33}
    assert found.cut == set()
    assert read_texts(examples, cutoff=40).cut == set(range(32))
    score = scored(ranks(loss_z=[0.0] * 34), found, None).set_index("row")["score"]
    assert (score[[30, 31, 32, 33]] >= FLAGGED).all()
    assert (score.drop([3, 8, 30, 31, 32, 33]) < FLAGGED).all()


def test_an_answer_that_owes_nothing_to_its_question_stands_out():
    draw = np.random.default_rng(1)
    ratios = dict(enumerate(np.exp(draw.normal(-0.7, 0.1, 60))))
    ratios[7] = 1.02
    found = scored(ranks(loss_z=[0.0] * 60), None, ratios)
    assert found["row"][0] == 7
    assert found["score"][0] > FLAGGED
