"""The targets on bytes, at the real sizes."""

import pytest

from benchmarks.fused_traffic import Linear
from benchmarks.kernel_bytes import MODELS, N_TOKENS, TARGET_RATIO, TARGET_STATISTICS, compare


@pytest.mark.parametrize("dropout", [True, False], ids=["dropout", ""])
@pytest.mark.parametrize("rank", [8, 16])
@pytest.mark.parametrize("model", MODELS)
def test_targets_are_met(model: str, rank: int, dropout: bool):
    """Each linear, against both of PEFT's forwards; and no total is below what anybody must move."""
    for name, (n_in, n_out) in MODELS[model].items():
        bias, autocast_x = model.startswith("Polyglot"), name.endswith("X fp32")
        layer = Linear(N_TOKENS, n_in, n_out, rank, dropout=dropout, bias=bias, autocast_x=autocast_x)
        c = compare(layer)
        assert {peft: c.ratio(peft) for peft in c.peft if c.ratio(peft) >= TARGET_RATIO} == {}, name
        assert 0 < c.statistics < TARGET_STATISTICS, name
        assert all(c.bound < traffic.hbm for traffic in (c.fused, *c.peft.values())), name
