"""Entities as seqeval counts them: the example of its README, and cases worked out by hand from its rules for IOB2."""

from __future__ import annotations

import importlib.util
import random
import warnings
from typing import Any

import pytest
from lora_train.trainer.metrics.entities import entities, entity_scores, is_iob

HAS_SEQEVAL = all(importlib.util.find_spec(name) is not None for name in ("seqeval", "sklearn"))
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


@pytest.mark.skipif(not HAS_SEQEVAL, reason="seqeval is not installed (pip install seqeval)")
def test_scores_are_those_of_seqeval():
    from seqeval.metrics import f1_score, precision_score, recall_score  # pyright: ignore[reportMissingImports]
    from seqeval.metrics.sequence_labeling import get_entities  # pyright: ignore[reportMissingImports]

    draw = random.Random(0)
    names = ["O", "O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-X-Y", "I-X-Y"]
    theirs: dict[str, Any] = {"f1": f1_score, "precision": precision_score, "recall": recall_score}
    for _ in range(300):
        wanted = [[draw.choice(names) for _ in range(draw.randint(1, 12))] for _ in range(draw.randint(1, 4))]
        said = [[tag if draw.random() < 0.7 else draw.choice(names) for tag in row] for row in wanted]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is undefined is 0 there too
            expected = {name: float(score(wanted, said)) for name, score in theirs.items()}
        assert entity_scores(said, wanted) == pytest.approx(expected, abs=1e-12)
        assert all(entities(row) == set(get_entities(row)) for row in [*wanted, *said])
