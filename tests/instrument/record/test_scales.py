"""Counts at other scales against casting the same values."""

from __future__ import annotations

import pytest
import torch
from lora_train.instrument.record.scales import count_at_scales

SCALE = 2.0**12


def gradient() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    exponents = torch.randint(-26, 16, (4000,), generator=generator)
    values = torch.rand(4000, generator=generator).add(1) * 2.0**exponents
    return torch.cat([values, -values, torch.zeros(100)]).half()


@pytest.mark.parametrize("power", range(0, 13, 3))
def test_lower_scales_are_exact(power):
    stored = gradient()
    lower = (stored.double() * 2.0**power / SCALE).half()
    counts = count_at_scales(stored, SCALE, [2.0**power], lost=0)
    infinite_already = int(stored.isinf().sum())
    assert counts.overflow == (int(lower.isinf().sum()),)
    assert infinite_already == counts.overflow[0]
    assert counts.underflow == (int(((lower == 0) & (stored != 0)).sum()),)


def test_higher_scales_overflow_exactly_and_bound_the_underflow():
    stored = gradient()
    higher = (stored.double() * 2.0**4).half()
    counts = count_at_scales(stored, SCALE, [SCALE * 2**4], lost=7)
    assert counts.overflow == (int(higher.isinf().sum()),)
    assert counts.underflow == (7,)
    unknown = count_at_scales(stored, SCALE, [SCALE * 2**4])
    assert unknown.underflow == (int((stored == 0).sum()),)


@pytest.mark.parametrize(("name", "dtype"), [("e4m3", torch.float8_e4m3fn), ("e5m2", torch.float8_e5m2)])
def test_fp8_counts_are_those_of_the_cast(name, dtype):
    stored = gradient()
    stored = stored[stored.isfinite()]
    cast = stored.float().to(dtype).float()
    overflow, underflow = getattr(count_at_scales(stored, SCALE, [], lost=0), name)
    assert underflow == int(((cast == 0) & (stored != 0)).sum())
    if dtype is torch.float8_e5m2:  # e4m3 has no infinity: torch saturates or gives NaN there
        assert overflow == int(cast.isinf().sum())
    else:
        assert overflow == int((stored.abs() >= 464).sum())


def test_counts_add_up():
    counts = count_at_scales(gradient(), SCALE, [1.0, SCALE], lost=3)
    both = counts + counts
    assert both.n == 2 * counts.n
    assert both.underflow == tuple(2 * count for count in counts.underflow)
    assert both.bf16 == (2 * counts.bf16[0], 2 * counts.bf16[1])
