"""Lists and tables of the terminal."""

from __future__ import annotations

from lora_train.instrument.show.compare.words import aligned, listed


def test_the_first_few_are_listed():
    assert listed(["a", "b", "c"], ["1", "2", "3"], most=2) == "a 1, b 2 (+1)"


def test_columns_of_korean_words_are_twice_as_wide():
    assert aligned([["최선", "x"], ["1234", "y"], ["a", "z"]]) == ["최선  x", "1234  y", "a     z"]
