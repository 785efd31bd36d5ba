"""Numbers and settings as people write them."""

from __future__ import annotations

import pytest
from lora_train.instrument.show.compare.words import aligned, number, setting


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (10212.3, "10,212"), (8862.0, "8,862"), (862.04, "862"), (1.5, "1.5"), (0.0001, "0.0001"), (1e-5, "1e-5"),
        (2.5e-07, "2.5e-7"), (float("nan"), "-"), (9200, "9,200"), (0.0, "0"), (1e20, "1e20"),
    ],
)  # fmt: skip
def test_numbers(value: float, text: str):
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"), (False, "false"), (None, "-"), ([], "-"), (["a", "b"], "a, b"), (1e-05, "1e-5"), (42, "42"),
        (100_000, "100,000"), ({"num_cycles": 2}, "num_cycles: 2"), ("linear", "linear"), (0.00025, "0.00025"),
    ],
)  # fmt: skip
def test_settings(value: object, text: str):
    assert setting(value) == text


def test_columns_of_korean_words_are_twice_as_wide():
    assert aligned([["최선", "x"], ["1234", "y"], ["a", "z"]]) == ["최선  x", "1234  y", "a     z"]
