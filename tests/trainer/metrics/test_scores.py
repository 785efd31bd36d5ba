"""Scores against their definitions, worked out by hand or by numpy."""

from __future__ import annotations

import numpy as np
import pytest
from lora_train.trainer.data.labels.labels import SEVERAL, SINGLE, VALUE, Labels
from lora_train.trainer.loop.evaluate import right_answers
from lora_train.trainer.metrics.scores import OF_CLASSES, OF_VALUES, Answers, confusion, scores

TWO = Labels("seq_cls", SINGLE, ("no", "yes"))
THREE = Labels("seq_cls", SINGLE, ("a", "b", "c"))


def answers(said: list[int], wanted: list[int], n: int) -> Answers:
    logits = np.eye(n, dtype=np.float32)[said] * 4
    return Answers(logits, np.array(wanted), [1] * len(said))


def test_three_classes_by_hand():
    found = scores(answers([0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 2, 0], 3), THREE)
    # a: tp 1 fp 1 fn 1; b: tp 2 fp 0 fn 1; c: tp 1 fp 1 fn 0
    f1 = [1 / 2, 4 / 5, 2 / 3]
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["f1"] == pytest.approx(np.mean(f1))
    assert found["f1_micro"] == pytest.approx(4 / 6)
    assert found["f1_weighted"] == pytest.approx((2 * f1[0] + 3 * f1[1] + 1 * f1[2]) / 6)
    assert found["precision"] == pytest.approx(np.mean([1 / 2, 1, 1 / 2]))
    assert found["recall"] == pytest.approx(np.mean([1 / 2, 2 / 3, 1]))
    assert tuple(found) == OF_CLASSES


def test_mcc_and_auroc_of_two_classes():
    logits = np.array([[2, 0], [1, 0], [0, 0.5], [0, 3], [0, 1]], np.float32)
    found = scores(Answers(logits, np.array([0, 1, 1, 1, 0]), [1] * 5), TWO)
    tp, tn, fp, fn = 2, 1, 1, 1
    mcc = (tp * tn - fp * fn) / np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert found["mcc"] == pytest.approx(mcc)
    # margins -2 -1 .5 3 1: of 3 x 2 pairs the yes is above the no in (-1 > -2), (.5 > -2), (3 > -2), (3 > 1)
    assert found["auroc"] == pytest.approx(4 / 6)


def test_auroc_of_a_class_without_rows_is_not_defined():
    assert scores(answers([0, 1, 1], [0, 1, 0], 3), THREE)["auroc"] is None


def test_several_labels_a_row():
    labels = Labels("seq_cls", SEVERAL, ("a", "b"))
    logits = np.array([[3, -3], [3, 3], [-3, 3], [-3, -3]], np.float32)
    found = scores(Answers(logits, np.array([[1, 0], [1, 0], [0, 1], [1, 0]], np.float32), [1] * 4), labels)
    # a: tp 2 fn 1; b: tp 1 fp 1
    assert found["accuracy"] == pytest.approx(2 / 4)
    assert found["f1"] == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert found["f1_micro"] == pytest.approx(2 * 3 / (2 * 3 + 1 + 1))


def test_right_answers_of_each_row():
    several = Labels("seq_cls", SEVERAL, ("a", "b"))
    logits = np.array([[3, -3], [3, 3], [-3, 3]], np.float32)
    both = right_answers(Answers(logits, np.array([[1, 0], [1, 0], [0, 1]], np.float32), [1] * 3), several)
    assert both is not None
    assert both.tolist() == [1, 0, 1]
    words = Answers(np.eye(3, dtype=np.float32)[[0, 1, 2, 2, 0]], np.array([0, 1, 1, 2, 0]), [3, 2])
    of_words = right_answers(words, Labels("token_cls", SINGLE, ("a", "b", "c")))
    assert of_words is not None
    assert (of_words.tolist(), of_words.dtype) == ([2, 2], np.dtype("int32"))
    assert right_answers(Answers(logits[:, :1], logits[:, :1], [1] * 3), Labels("seq_cls", VALUE)) is None


def test_values():
    said, wanted = np.array([1.0, 2.0, 4.0, 3.0]), np.array([1.5, 2.0, 3.0, 3.5])
    found = scores(
        Answers(said[:, None].astype("float32"), wanted[:, None].astype("float32"), [1] * 4), Labels("seq_cls", VALUE)
    )
    assert found["mse"] == pytest.approx(np.mean((said - wanted) ** 2))
    assert found["mae"] == pytest.approx(np.mean(abs(said - wanted)))
    assert found["pearson"] == pytest.approx(np.corrcoef(said, wanted)[0, 1])
    assert found["spearman"] == pytest.approx(np.corrcoef(said.argsort().argsort(), wanted.argsort().argsort())[0, 1])
    assert tuple(found) == OF_VALUES


def test_a_correlation_with_a_constant_is_not_defined():
    found = scores(Answers(np.ones((3, 1), "float32"), np.arange(3.0)[:, None], [1] * 3), Labels("seq_cls", VALUE))
    assert found["pearson"] is None
    assert found["spearman"] is None


def test_words_are_judged_by_their_entities():
    labels = Labels("token_cls", SINGLE, ("B-PER", "I-PER", "O"))
    logits = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 2]]
    found = scores(Answers(logits, np.array([0, 1, 2, 0, 0]), [3, 2]), labels)
    assert found == {
        "accuracy": pytest.approx(0.8),
        "f1": pytest.approx(0.8),
        "precision": 1.0,
        "recall": pytest.approx(2 / 3),
    }


def test_logits_that_are_not_finite_give_no_score():
    broken = Answers(np.full((2, 2), np.nan, np.float32), np.array([0, 1]), [1, 1])
    assert set(scores(broken, TWO).values()) == {None}


def test_confusion_counts_rows_by_label_and_answer():
    assert confusion(answers([0, 0, 1, 2], [0, 1, 1, 0], 3), THREE).tolist() == [[1, 0, 1], [1, 1, 0], [0, 0, 0]]
