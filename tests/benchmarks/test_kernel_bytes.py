"""The targets on bytes, at the real sizes."""

import pytest

from benchmarks.kernel_bytes import (
    BATCHES,
    CHIPS,
    MODELS,
    TARGET_RATIO,
    TARGET_SQUARES,
    TARGET_STATISTICS,
    compare,
    layer_of,
    most_of_examples,
)


@pytest.mark.parametrize("dropout", [True, False], ids=["dropout", ""])
@pytest.mark.parametrize("rank", [8, 16])
@pytest.mark.parametrize("model", MODELS)
def test_targets_are_met(model: str, rank: int, dropout: bool):
    """Each linear, against both of PEFT's forwards; and no total is below what anybody must move."""
    for name in MODELS[model]:
        c = compare(layer_of(model, name, rank, dropout))
        assert {peft: c.ratio(peft) for peft in c.peft if c.ratio(peft) >= TARGET_RATIO} == {}, name
        assert 0 < c.statistics < TARGET_STATISTICS, name
        assert all(c.bound < traffic.hbm for traffic in (c.fused, *c.peft.values())), name


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("chip", CHIPS)
def test_squares_of_examples_take_few_bytes_and_no_launch(chip: str, batch: str):
    added, where = most_of_examples(chip, True, BATCHES[batch])
    assert added.n_bytes <= TARGET_SQUARES, where
    assert added.launches == 0
