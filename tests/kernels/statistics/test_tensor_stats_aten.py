"""The CPU's statistics: rounding with its counts in C and in ATen, threads, and a machine without a compiler."""

import pytest
import torch
from lora_train.kernels import cpu
from lora_train.kernels.statistics import tensor_stats_aten
from lora_train.kernels.statistics.exponents import exponent_histogram, exponent_histogram_reference
from lora_train.kernels.statistics.tensor_stats import tensor_stats
from lora_train.kernels.statistics.tensor_stats_aten import tensor_stats_reference

from ..helpers import DTYPES, accumulator, assert_row, at_level, levels_here, random


def test_aten_serves_without_the_extension(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cpu, "AVAILABLE", False)
    monkeypatch.setattr(cpu, "_stats", None)
    x = random(431, torch.float16)
    assert_row(tensor_stats(x), tensor_stats_reference(x))
    assert torch.equal(exponent_histogram(x), exponent_histogram_reference(x))
    stored, row = tensor_stats_aten.round_with_stats_cpu(x.float() * 1e5, torch.float16)
    assert_row(row, tensor_stats_aten.round_with_stats_reference(x.float() * 1e5, torch.float16)[1])
    assert stored.isinf().any()


@pytest.mark.skipif(not cpu.AVAILABLE, reason="the C extension was not built")
def test_threads_and_instructions_do_not_change_the_bits():
    x = random(3 * 2**18 + 431, torch.float32)
    threads = torch.get_num_threads()
    rows = []
    try:
        for n in (1, 2, 3, 64):
            torch.set_num_threads(n)
            for level in levels_here():
                with at_level(level):
                    rows.append(cpu.stats(x, True))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(row[:4], rows[0][:4]) for row in rows)
    assert_row(rows[0], tensor_stats_reference(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 14), (7, 9), (123, 63), (2, 2**18 + 1)])
def test_c_counts_overflow_and_underflow(shape: tuple[int, int], dtype: torch.dtype):
    if not cpu.AVAILABLE:
        pytest.skip("the C extension was not built")
    acc, n_overflow, n_underflow = accumulator(dtype, *shape)
    stored = torch.empty_like(acc, dtype=dtype)
    row = cpu.round_with_stats(acc, stored)
    expected, expected_row = tensor_stats_aten.round_with_stats_reference(acc, dtype)
    assert row[4:6].tolist() == [n_overflow, n_underflow]
    torch.testing.assert_close(stored, expected, rtol=0, atol=0, equal_nan=True)
    assert_row(row, expected_row)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_c_rounds_every_magnitude_as_torch_does(dtype: torch.dtype):
    if not cpu.AVAILABLE:
        pytest.skip("the C extension was not built")
    generator = torch.Generator().manual_seed(3)
    random_bits = torch.randint(-(2**31), 2**31, (100_001,), generator=generator)
    ties = torch.arange(2**16) << 16 | 0x8000  # bf16 ties; those of fp16 are 0x1000 in the lower bits
    fp16_ties = (torch.arange(0x3300, 0x4790) << 16)[:, None] + torch.arange(0x0FFF, 0x10000, 0x1000)
    bits = torch.cat((random_bits, ties, fp16_ties.flatten()))
    acc = bits.to(torch.int32).view(torch.float32)
    stored = torch.empty_like(acc, dtype=dtype)
    row = cpu.round_with_stats(acc, stored)
    expected, expected_row = tensor_stats_aten.round_with_stats_reference(acc, dtype)
    finite = ~expected.isnan()
    assert torch.equal(stored.isnan(), expected.isnan())
    assert torch.equal(stored.view(torch.int16)[finite], expected.view(torch.int16)[finite])
    assert_row(row, expected_row)


@pytest.mark.parametrize("dtype", DTYPES)
def test_round_with_stats_takes_any_strides(dtype: torch.dtype):
    acc = random(6 * 41, torch.float32).view(6, 41).mT * 1e5
    stored, row = tensor_stats_aten.round_with_stats_cpu(acc, dtype)
    expected, expected_row = tensor_stats_aten.round_with_stats_reference(acc, dtype)
    assert torch.equal(stored, expected)
    assert_row(row, expected_row)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("compiled", [True, False], ids=["c", "aten"])
def test_rounding_nothing_counts_nothing(dtype: torch.dtype, compiled: bool, monkeypatch: pytest.MonkeyPatch):
    """0, not null: whoever rounded knows that nothing overflowed."""
    if not compiled:
        monkeypatch.setattr(cpu, "AVAILABLE", False)
    stored, row = tensor_stats_aten.round_with_stats_cpu(torch.empty(0, 5), dtype)
    assert (stored.shape, stored.dtype) == ((0, 5), dtype)
    assert row.tolist() == [0] * 9
