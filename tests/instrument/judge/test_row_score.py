"""The parts of a row's score, and which of them decides."""

from __future__ import annotations

import numpy as np
import pandas as pd
from lora_train.instrument.judge.row_score import FLAGGED, NOT_FINITE, Texts, scored


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


def test_an_answer_that_owes_nothing_to_its_question_stands_out():
    draw = np.random.default_rng(1)
    ratios = dict(enumerate(np.exp(draw.normal(-0.7, 0.1, 60))))
    ratios[7] = 1.02
    found = scored(ranks(loss_z=[0.0] * 60), None, ratios)
    assert found["row"][0] == 7
    assert found["score"][0] > FLAGGED


def test_what_stands_out_has_a_kind():
    texts = Texts({3: (0, 0.9)}, {4})
    loss, grad = [4.0, 0.0, 3.5, 0.0, 0.0, 0.0], [0.0, 6.0, 9.0, 0.0, 0.0, 0.0]
    found = scored(ranks(loss_z=loss, grad_z=grad, not_finite=[0, 0, 0, 0, 0, 1]), texts, None)
    kinds = dict(zip(found["row"].tolist(), found["kind"].tolist(), strict=True))
    assert kinds == {0: "loss", 1: "grad", 2: "grad", 3: "duplicate", 4: "", 5: "not_finite"}
