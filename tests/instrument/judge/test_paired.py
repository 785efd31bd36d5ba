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
