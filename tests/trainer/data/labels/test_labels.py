"""What a label is: kinds, names and their order, and a label as numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from lora_train.trainer.data.labels.labels import (
    SEVERAL,
    SINGLE,
    VALUE,
    Labels,
    is_missing,
    kind_of,
    names_in,
    problem_type_of,
)
from lora_train.trainer.data.readers import BadRow


@pytest.mark.parametrize(
    ("labels", "kind", "names"),
    [
        (["pos", "neg", "pos"], SINGLE, ("neg", "pos")),
        ([1, 0, 1], SINGLE, ("0", "1")),
        ([5, 1, 10], SINGLE, ("1", "5", "10")),
        (["10", "9"], SINGLE, ("9", "10")),
        ([-1, 1, 0], SINGLE, ("-1", "0", "1")),
        ([True, False], SINGLE, ("false", "true")),
        ([1, "1", 0], SINGLE, ("0", "1")),
        ([["a"], ["b", "a"], []], SEVERAL, ("a", "b")),
        ([[0, 1, 1], [1, 0, 0]], SEVERAL, ("0", "1", "2")),
        ([[0, 2], [1]], SEVERAL, ("0", "1", "2")),
        ([[0.0, 1.0], [1.0, 1.0]], SEVERAL, ("0", "1")),
        ([0.5, 1.0], VALUE, None),
        ([1, 2.5], VALUE, None),
        (["0.5", "3"], VALUE, None),
    ],
)
def test_kinds_and_names(labels, kind, names):
    assert problem_type_of(labels) == kind
    if names is not None:
        assert names_in(labels, kind) == names


@pytest.mark.parametrize(
    ("labels", "label", "encoded"),
    [
        (Labels("seq_cls", SINGLE, ("a", "b")), "b", np.array([1])),
        (Labels("seq_cls", SINGLE, ("0", "1")), 1.0, np.array([1])),
        (Labels("seq_cls", SINGLE, ("false", "true")), True, np.array([1])),
        (Labels("seq_cls", SEVERAL, ("a", "b", "c")), ["c", "a"], np.array([1, 0, 1], np.float32)),
        (Labels("seq_cls", SEVERAL, ("a", "b", "c")), [0, 1, 1], np.array([0, 1, 1], np.float32)),
        (Labels("seq_cls", SEVERAL, ("a", "b", "c")), [], np.zeros(3, np.float32)),
        (Labels("seq_cls", VALUE), "2.5", np.array([2.5], np.float32)),
        (Labels("seq_cls", VALUE), 3, np.array([3], np.float32)),
    ],
)
def test_a_label_as_numbers(labels, label, encoded):
    found = labels.encoded(label)
    assert found.dtype == encoded.dtype
    assert found.tolist() == encoded.tolist()


@pytest.mark.parametrize(
    ("labels", "label", "fault"),
    [
        (Labels("seq_cls", SINGLE, ("a", "b")), "c", "data.label_unseen"),
        (Labels("seq_cls", SINGLE, ("0", "1")), 2, "data.label_unseen"),
        (Labels("seq_cls", SINGLE, ("0", "1")), 0.5, "data.label_not_class"),
        (Labels("seq_cls", SINGLE, ("0", "1")), ["0"], "data.label_not_class"),
        (Labels("seq_cls", SEVERAL, ("a", "b")), ["c"], "data.label_unseen"),
        (Labels("seq_cls", VALUE), "much", "data.label_not_number"),
        (Labels("seq_cls", VALUE), True, "data.label_not_number"),
        (Labels("seq_cls", VALUE), "inf", "data.label_not_number"),
        (Labels("seq_cls", VALUE), 10**400, "data.label_not_number"),
    ],
)
def test_what_is_none_of_the_labels(labels, label, fault):
    with pytest.raises(BadRow) as caught:
        labels.encoded(label)
    assert [key for key, _ in caught.value.faults] == [fault]


@pytest.mark.parametrize("label", [None, "", math.nan])
def test_missing(label):
    assert is_missing(label)


@pytest.mark.parametrize(("label", "missing"), [(0, False), (False, False), ("0", False), ([], False), (0.0, False)])
def test_nothing_is_missing_that_is_falsy(label, missing):
    assert is_missing(label) is missing


@pytest.mark.parametrize("label", [{"a": 1}, [["a"]], math.inf, -math.inf, [None], [math.nan]])
def test_no_kind_of_label(label):
    with pytest.raises(BadRow):
        kind_of(label)
