"""The exponent histogram against `math.frexp`, value for value, on every backend."""

import math

import pytest
import torch
from lora_train.kernels.statistics.exponents import (
    exponent_histogram,
    exponent_histogram_reference,
    exponent_histogram_triton,
)

from ..helpers import DTYPES, INF, NAN, random


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [0, 1, 431, 20_001])
def test_exponents(dtype: torch.dtype, n: int, triton_device: str):
    x = random(n, dtype) * 1e-4
    if n > 1:
        x[0], x[1], x[-1], x[-2] = NAN, INF, 0.0, -1.0
    expected = torch.zeros(256, dtype=torch.int64)
    for value in x.double().tolist():
        if not math.isfinite(value):
            expected[255] += 1
        elif value == 0:
            expected[0] += 1
        else:
            expected[max(math.frexp(value)[1] + 126, 0)] += 1
    counts = exponent_histogram_triton(x.to(triton_device)).cpu()
    assert torch.equal(counts, expected)
    assert torch.equal(exponent_histogram(x), expected)
    assert torch.equal(exponent_histogram_reference(x), expected)
