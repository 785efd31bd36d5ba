"""Rows held against rows."""

from __future__ import annotations

import numpy as np
import pytest
from lora_train.instrument.judge.paired import paired


def test_rows_are_compared_with_themselves():
    random = np.random.default_rng(0)
    tokens = random.integers(10, 200, 100).astype(float)
    rows = tokens * np.exp(0.6 * random.standard_normal(100))
    risen = paired(rows, tokens, rows * (1.1 + 0.1 * random.standard_normal(100)), tokens)
    assert (risen.verdict, risen.n) == ("rose", 100)
    assert risen.percent == pytest.approx(10, abs=4)
    assert paired(rows, tokens, rows, tokens).verdict == "same"
    with pytest.raises(ValueError, match="same rows"):
        paired(rows, tokens, rows, tokens + 1)


def test_a_row_with_a_heavy_tail_neither_decides_nor_hides_what_the_others_did():
    draw = np.random.default_rng(0)
    tokens = np.full(100, 50.0)
    before = 100 + draw.standard_normal(100)
    after = before * (1 + 0.03 * np.abs(draw.standard_normal(100)))  # every row is a little worse
    after[0] -= 120.0  # and one much better
    found = paired(before, tokens, after, tokens)
    assert (found.verdict, found.percent > 0) == ("rose", True)
    one = before.copy()
    one[0] += 5000.0
    assert paired(before, tokens, one, tokens).verdict == "same"


def test_where_the_tail_says_the_opposite_of_the_others_nothing_is_said():
    draw = np.random.default_rng(1)
    tokens = np.full(100, 50.0)
    before = 100 + draw.standard_normal(100)
    after = before * (1 - 0.01 * np.abs(draw.standard_normal(100)))
    after[:2] += 300.0
    found = paired(before, tokens, after, tokens)
    assert found.percent > 0
    assert found.verdict == "same"
