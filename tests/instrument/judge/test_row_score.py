"""The parts of a row's score, and which of them decides."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from lora_train.instrument.judge.row_score import FLAGGED, NOT_FINITE, PROBED, Probed, Texts, scored, to_leave_out


def ranks(**columns: list) -> pd.DataFrame:
    n = len(next(iter(columns.values())))
    plain = {"row": range(n), "n_supervised": [9] * n, "not_finite": [0] * n}
    plain |= {"loss_z": [0.0] * n, "grad_excess_z": [0.0] * n}
    return pd.DataFrame({**plain, **columns})


def test_parts_above_0_add_up_as_sides_of_a_right_angle():
    loss, grad = [4.0, -3.0, 3.0, 1.0, -1.0], [0.0, 6.0, 4.0, np.nan, -9.0]
    found = scored(ranks(loss_z=loss, grad_excess_z=grad), None, None).set_index("row")
    assert found["score"].to_dict() == {0: 4.0, 1: 6.0, 2: 5.0, 3: 1.0, 4: 0.0}
    assert found.index.tolist() == [1, 2, 0, 3, 4]


def test_what_a_row_has_in_common_with_another_counts_by_halves_of_the_rest():
    texts = Texts({0: (4, 0.5), 1: (4, 0.875), 2: (4, 1.0)}, {1, 3})
    found = scored(ranks(loss_z=[0.0] * 5), texts, None).set_index("row")["score"]
    assert found.to_dict() == pytest.approx({0: 1.0, 1: np.sqrt(10), 2: 7.0, 3: 1.0, 4: 0.0})


def test_of_two_values_by_chance_one_in_2000_is_far_enough_out():
    draw = np.random.default_rng(0)
    loss, grad = draw.normal(size=(2, 400_000))
    found = scored(ranks(loss_z=loss.tolist(), grad_excess_z=grad.tolist()), None, None)
    assert 1 / 2300 < (found["score"] >= FLAGGED).mean() < 1 / 1500


def test_a_row_that_was_not_finite_is_the_worst():
    found = scored(ranks(loss_z=[9.0, np.nan], not_finite=[0, 1]), None, None)
    assert found["row"].tolist() == [1, 0]
    assert found["score"][0] == NOT_FINITE


def test_an_answer_that_owes_nothing_to_its_question_stands_out():
    draw = np.random.default_rng(1)
    probed = {row: Probed(saved, 0.0, None) for row, saved in enumerate(np.exp(draw.normal(2.5, 0.4, 60)).tolist())}
    probed[7] = Probed(-0.3, 0.0, None)
    found = scored(ranks(loss_z=[0.0] * 60), None, probed)
    assert found["row"][0] == 7
    assert found["score"][0] == pytest.approx(PROBED * found["probe_z"][0])
    assert (found["probe_z"][0] > FLAGGED, found["kind"][0]) == (True, "probe")


def test_an_answer_that_another_question_fits_better_stands_out_as_much():
    draw = np.random.default_rng(1)
    probed = {row: Probed(saved, 0.5, 3) for row, saved in enumerate(np.exp(draw.normal(2.5, 0.4, 60)).tolist())}
    probed[7] = Probed(11.0, 40.0, 5)
    found = scored(ranks(loss_z=[0.0] * 60), None, probed)
    assert (found["row"][0], found["kind"][0], found["fits"][0], found["better"][0]) == (7, "probe", 5, 40.0)


def test_a_question_that_fits_better_counts_half():
    assert Probed(8.0, 0.0, None).belongs == pytest.approx(np.log(8))
    assert Probed(8.0, 15.0, 3).belongs == pytest.approx(np.log(2))
    assert Probed(-1.0, 3.0, 3).belongs == pytest.approx(np.log(0.005))


def test_the_probe_orders_rows_and_flags_no_more_of_them_by_chance():
    draw = np.random.default_rng(2)
    loss, grad, saved = draw.normal(size=(3, 100_000))
    probed = {row: Probed(own, 0.0, None) for row, own in enumerate(np.exp(2 + saved / 3).tolist())}
    found = scored(ranks(loss_z=loss.tolist(), grad_excess_z=grad.tolist()), None, probed)
    assert 1 / 1100 < (found["kind"] != "").mean() < 1 / 500
    assert (found["score"] >= FLAGGED).mean() > 0.03


def test_what_stands_out_has_a_kind():
    texts = Texts({3: (0, 0.95)}, {4})
    loss, grad = [4.0, 0.0, 3.5, 0.0, 0.0, 0.0], [0.0, 6.0, 9.0, 0.0, 0.0, 0.0]
    found = scored(ranks(loss_z=loss, grad_excess_z=grad, not_finite=[0, 0, 0, 0, 0, 1]), texts, None)
    kinds = dict(zip(found["row"].tolist(), found["kind"].tolist(), strict=True))
    assert kinds == {0: "loss", 1: "grad", 2: "grad", 3: "duplicate", 4: "", 5: "not_finite"}


def test_of_copies_the_first_stays():
    texts = Texts({1: (4, 1.0), 4: (1, 1.0), 5: (1, 1.0), 6: (0, 1.0)}, set())
    found = scored(ranks(loss_z=[0.0, 0.0, 9.0, 0.0, 0.0, 0.0, 0.0]), texts, None)
    assert to_leave_out(found) == [2, 4, 5, 6]
