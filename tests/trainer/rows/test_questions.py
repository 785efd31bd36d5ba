"""Which other questions a row is held against, and a row behind one of them."""

from __future__ import annotations

import numpy as np
import pytest
from lora_train.trainer.data.examples import Example
from lora_train.trainer.rows.questions import asks, fitting, others_of, under

from .test_texts import example


def test_others_ask_something_else_and_are_drawn_once():
    rows = [example(4, [5, 6, 7, 8, 9], 3), example(5, [5, 6, 7, 3], 3), example(6, [5, 4, 2, 2, 2], 2)]
    found = others_of([*rows, example(7, [8, 9])], 2)
    assert [sorted(own) for own in found] == [[2], [2], [0, 1], []], "rows 4 and 5 ask the same, row 7 nothing"
    assert others_of(rows[:2], 2) == [[], []]
    many = [example(at, [5, at, 7], 2) for at in range(40)]
    assert others_of(many, 3) == others_of(many, 3)
    assert all(len({at, *own}) == 4 for at, own in enumerate(others_of(many, 3)))


def test_another_part_of_a_row_is_not_another_row():
    parts = [example(0, [1, 2, 3], 2), example(0, [4, 5, 6], 2)]
    assert others_of(parts, 2) == [[], []]
    assert others_of([*parts, example(1, [7, 8, 9], 2)], 2) == [[2], [2], [0, 1]]


def test_a_row_behind_another_question_is_no_longer_than_the_longest():
    row = Example(0, np.array([1, 2, 3, 4, 5], np.int32), np.array([False, False, True, False, True]))
    found = under(row, np.array([7, 8], np.int32), 5)
    assert (found.row, found.input_ids.tolist(), found.input_ids.dtype) == (0, [7, 8, 3, 4, 5], np.int32)
    assert found.supervised.tolist() == [False, False, True, False, True], "what is not trained on stays"
    assert under(row, np.array([6, 7, 8, 9], np.int32), 5).input_ids.tolist() == [8, 9, 3, 4, 5]
    assert asks(row).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("questions", "answers"),
    [
        (["Where is Seoul?", "What is numpy.linalg.norm?", "Who wrote Hamlet?"],
         ["Shakespeare wrote Hamlet.", "Seoul lies in Korea.", "The norm of a matrix."]),
        (["서울은 어디에 있나요?", "놈(norm)이 뭔가요?", "햄릿은 누가 썼나요?"],
         ["햄릿은 셰익스피어가 썼습니다.", "서울은 한국에 있습니다.", "norm은 벡터의 크기입니다."]),
    ],
)  # fmt: skip
def test_the_question_that_fits_is_that_of_the_row_whose_answer_it_is(questions, answers):
    rows = [example(at, [9, at, 3], 2) for at in range(3)]
    assert fitting(rows, questions, answers) == [2, 0, 1]
    assert fitting(rows, questions, ["!", "", "xyz"]) == [None] * 3


def test_a_rows_own_question_and_one_like_it_are_not_another():
    rows = [example(0, [9, 1, 3], 2), example(1, [9, 1, 4], 2), example(2, [9, 2, 5], 2)]
    questions = ["what is a lemon", "what is a lemon", "where grows the tree"]
    assert fitting(rows, questions, ["a lemon tree", "a lemon tree", "a lemon tree"]) == [2, 2, 0]
