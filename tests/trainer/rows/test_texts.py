"""Copies among the rows of a run, and how its rows begin."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from lora_train.instrument.judge.row_score import FLAGGED, scored
from lora_train.trainer.data.examples import Example
from lora_train.trainer.rows.texts import previews, read_texts


def example(row: int, ids: list[int], supervised_from: int = 1) -> Example:
    return Example(row, np.array(ids, np.int32), np.arange(len(ids)) >= supervised_from)


def ranks(**columns: list) -> pd.DataFrame:
    n = len(next(iter(columns.values())))
    plain = {
        "row": range(n),
        "n_supervised": [9] * n,
        "loss_z": [0.0] * n,
        "grad_excess_z": [0.0] * n,
        "not_finite": [0] * n,
    }
    return pd.DataFrame({**plain, **columns})


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
    assert (score[[8, 30, 32, 33]] >= FLAGGED).all()
    assert (score[[3, 31]] > 1.3).all(), "six tenths are more than one halving"
    assert (score.drop([3, 8, 30, 31, 32, 33]) == 0).all()


def test_a_preview_is_one_line_without_what_moves_a_cursor():
    class Tokenizer:
        def batch_decode(self, ids: list[list[int]], **_: Any) -> list[str]:
            return [f"{len(own)}\n\x1b[2J  b\u202ec" for own in ids]

    assert previews([example(3, list(range(400)))], Tokenizer()) == {3: "300  [2J b c"}
    assert previews([example(3, [1])], None) == {}
