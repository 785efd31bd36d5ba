"""Squares of tiles in registers, of any magnitude, against float64."""

from __future__ import annotations

import pytest
import torch
import triton.language as tl
from lora_train.kernels.backend import jit
from lora_train.kernels.lora_linear.read.squares import square, write_squares


@jit
def _square_kernel(x_ptr, out_ptr, ROWS: tl.constexpr, COLS: tl.constexpr):
    at = tl.arange(0, ROWS)[:, None] * COLS + tl.arange(0, COLS)[None, :]
    tl.store(out_ptr, square(tl.load(x_ptr + at)))
    flat = tl.arange(0, ROWS * COLS)
    tl.store(out_ptr + 1, square(tl.load(x_ptr + flat)))


@jit
def _group_kernel(x_ptr, out_ptr, scale, k0, k1, k2, size, ROWS: tl.constexpr, COLS: tl.constexpr):
    at = tl.arange(0, ROWS)[:, None] * (2 * COLS) + tl.program_id(2) * COLS + tl.arange(0, COLS)[None, :]
    write_squares(tl.load(x_ptr + at), scale, out_ptr + tl.program_id(2), size, k0, k1, k2, k2, 3)


SCALES = [1.0, 2.0**-149, 2.0**-140, 1e-30, 1e-24, 1e16, 2.0**120]


@pytest.mark.parametrize("scale", SCALES)
def test_any_magnitude(triton_device: str, scale: float):
    x = torch.randn(64, 16, device=triton_device) * scale
    out = torch.empty(2, dtype=torch.float64, device=triton_device)
    _square_kernel[(1, 1, 1)](x, out, 64, 16, num_warps=4)
    torch.testing.assert_close(out, x.double().square().sum().expand(2), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_shows(triton_device: str, value: float):
    x = torch.randn(64, 16, device=triton_device)
    x[5, 7] = value
    out = torch.zeros(2, dtype=torch.float64, device=triton_device)
    _square_kernel[(1, 1, 1)](x, out, 64, 16, num_warps=4)
    assert not out.isfinite().any()


def test_zeros_and_the_largest_value(triton_device: str):
    for value in (0.0, torch.finfo(torch.float32).max):
        x = torch.full((64, 16), value, device=triton_device)
        out = torch.empty(2, dtype=torch.float64, device=triton_device)
        _square_kernel[(1, 1, 1)](x, out, 64, 16, num_warps=4)
        torch.testing.assert_close(out, x.double().square().sum().expand(2), rtol=1e-6, atol=0.0)


def test_projections_of_any_magnitude_beside_each_other(triton_device: str):
    """Ranks 10, 5 and 3 in two chunks of 16: the third begins in the first and ends in the second."""
    x = torch.randn(64, 32, device=triton_device)
    x[:, 10:15] *= 1e-30
    x[:, 18:] = 0.0
    out = torch.full((6, 2), -1.0, dtype=torch.float64, device=triton_device)
    _group_kernel[(1, 1, 2)](x, out, 0.5, 10, 5, 3, 4, 64, 16, num_warps=4)
    wide = x.double() / 2
    for i, (start, stop) in enumerate([(0, 10), (10, 15), (15, 18)]):
        for chunk, own in enumerate((slice(start, min(stop, 16)), slice(max(start, 16), max(stop, 16)))):
            expected = wide[:, own].square().sum()
            torch.testing.assert_close(out[2 * i, chunk], expected, rtol=1e-6, atol=0.0)
    assert (out[1::2] == -1).all(), "beside its places"
