"""Entities as seqeval counts them: the example of its README, and cases worked out by hand from its rules for IOB2."""

from __future__ import annotations

import pytest
from lora_train.trainer.metrics.entities import entities, entity_scores, is_iob

README = (
    [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]],
    [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]],
)


def test_the_readme_of_seqeval():
    wanted, predicted = README
    assert entity_scores(predicted, wanted) == {"f1": 0.5, "precision": 0.5, "recall": 0.5}


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (["B-PER", "I-PER", "O", "B-LOC"], {("PER", 0, 1), ("LOC", 3, 3)}),
        (["B-PER", "B-PER"], {("PER", 0, 0), ("PER", 1, 1)}),
        (["I-PER", "I-PER", "O"], {("PER", 0, 1)}),
        (["O", "I-PER", "I-LOC"], {("PER", 1, 1), ("LOC", 2, 2)}),
        (["B-PER", "I-LOC", "I-LOC"], {("PER", 0, 0), ("LOC", 1, 2)}),
        (["B-PER", "O", "I-PER"], {("PER", 0, 0), ("PER", 2, 2)}),
        (["O", "O"], set()),
        ([], set()),
    ],
)
def test_where_entities_begin_and_end(labels, found):
    assert entities(labels) == found


def test_an_entity_of_another_row_is_another():
    assert entity_scores([["B-A"], ["O"]], [["O"], ["B-A"]])["f1"] == 0


def test_nothing_said_or_nothing_there_is_zero():
    zero = {"f1": 0.0, "precision": 0.0, "recall": 0.0}
    assert entity_scores([["O", "O"]], [["B-A", "O"]]) == zero
    assert entity_scores([["B-A", "O"]], [["O", "O"]]) == zero


@pytest.mark.parametrize(
    ("names", "iob"),
    [(("O", "B-PER", "I-PER"), True), (("O", "B-PER"), True), (("B-PER", "I-PER"), False), (("O", "NOUN"), False),
     (("NOUN", "VERB"), False)],
)  # fmt: skip
def test_which_labels_are_iob(names, iob):
    assert is_iob(names) is iob
