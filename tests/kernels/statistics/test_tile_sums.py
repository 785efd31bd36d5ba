"""Statistics counted by the way: every way a sum can leave fp32, padding, long loops, and the PTX that counts."""

import re

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from lora_train.kernels.backend import jit, triton_on_cpu
from lora_train.kernels.statistics import tile_sums
from lora_train.kernels.statistics.multi_tensor import multi_tensor_stats_triton
from lora_train.kernels.statistics.reduce import N_PARTIALS, reduce_partials
from lora_train.kernels.statistics.tensor_stats import tensor_stats_triton
from lora_train.kernels.statistics.tensor_stats_aten import tensor_stats_reference
from lora_train.kernels.statistics.tile_stats import write_partials

from ..helpers import DTYPES, INF, NAN, assert_row, random


@jit
def strip_kernel(
    x_ptr, partials_ptr, n_rows, n_cols, COUNT_SMALL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr
):
    """What `grad` and `up` do: a strip of columns per program, tile after tile of rows, masked on both sides."""
    strip = tl.program_id(0).to(tl.int64)
    cols = strip * BLOCK_C + tl.arange(0, BLOCK_C)
    sums = tile_sums.start_sums()
    for start in range(0, n_rows, BLOCK_M):  # type: ignore[reportArgumentType]
        rows = start + tl.arange(0, BLOCK_M)
        mask = (rows < n_rows)[:, None] & (cols < n_cols)[None, :]
        x = tl.load(x_ptr + rows[:, None] * n_cols + cols[None, :], mask=mask, other=0.0)
        sums = tile_sums.add_tile(sums, x, x, False, COUNT_SMALL)
    n_tiles, last_col = tl.cdiv(n_rows, BLOCK_M), tl.minimum((strip + 1) * BLOCK_C, n_cols)
    total = tile_sums.matrix_partials(
        sums, n_tiles, x_ptr, 0, n_rows, strip * BLOCK_C, last_col, n_cols, False, COUNT_SMALL, BLOCK_M, BLOCK_C
    )
    write_partials(partials_ptr, strip, total)


def by_strips(x: torch.Tensor, device: str, block_m: int = 32) -> torch.Tensor:
    """Row of a matrix, counted by `strip_kernel`."""
    strips = max(1, triton.cdiv(x.shape[1], 64))
    partials = torch.empty((strips, N_PARTIALS), dtype=torch.float64, device=device)
    small = x.dtype != torch.float32
    strip_kernel[(strips,)](
        x.to(device), partials, *x.shape, COUNT_SMALL=small, BLOCK_M=block_m, BLOCK_C=64, enable_fp_fusion=False
    )
    with triton_on_cpu() if device == "cpu" else torch.no_grad():
        return reduce_partials(partials, x.numel()).cpu()


def flat_row(x: torch.Tensor, device: str) -> torch.Tensor:
    """Row of a flat tensor, fp32 with its small values."""
    with triton_on_cpu() if device == "cpu" else torch.no_grad():
        return tensor_stats_triton(x.to(device), True).cpu()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (31, 63), (33, 65), (100, 130), (32, 64)])
def test_padding_is_not_counted(shape: tuple[int, int], dtype: torch.dtype, triton_device: str):
    """Zeros of the tensor are, zeros that a mask puts beside it are not."""
    x = random(shape[0] * shape[1], dtype, seed=sum(shape)).view(shape)
    x[0, 0], x[-1, -1] = 0.0, -0.0
    assert_row(by_strips(x, triton_device), tensor_stats_reference(x, full=False))


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("at", [(0, 0), (99, 129), (50, 70)])
def test_one_value_that_is_not_finite(at: tuple[int, int], dtype: torch.dtype, value: float, triton_device: str):
    """It is counted, and the largest finite value, the sum and the zeros are as if it were not there."""
    x = random(100 * 130, dtype).view(100, 130)
    x[3, 4], x[at] = 0.0, value
    assert_row(by_strips(x, triton_device), tensor_stats_reference(x, full=False))


@pytest.mark.parametrize("value", [0.1, 1.0, 1e20, 1e-20, 3e38, 1e-30, 1e-41, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_constant_tensors(dtype: torch.dtype, value: float, triton_device: str):
    """Roundings of a constant all go one way; squares of 1e20 are infinite and those of 1e-20 subnormal in fp32."""
    x = torch.full((150_001,), value).to(dtype)
    assert_row(flat_row(x, triton_device), tensor_stats_reference(x))


@pytest.mark.parametrize("value", [0.1, 65504.0, 6e-8, 0.0])
def test_constant_fp16(value: float, triton_device: str):
    x = torch.full((150_001,), value, dtype=torch.float16)
    assert_row(flat_row(x, triton_device), tensor_stats_reference(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scales", [(1e20, 1e-20), (1e-20, 1.0), (1e-14, 1e-15), (1e19, 1e18), (1e-40, 1e-38)])
def test_mixed_magnitudes(dtype: torch.dtype, scales: tuple[float, float], triton_device: str):
    x = (random(20_000, torch.float32) * torch.tensor(scales).repeat(10_000)).to(dtype)
    assert_row(flat_row(x, triton_device), tensor_stats_reference(x))


@pytest.mark.parametrize("exponent", range(-52, -42))
def test_sums_around_the_smallest_that_is_trusted(exponent: int, triton_device: str):
    """2^-96 is a norm of 2^-48: below it a share is counted again, scaled."""
    x = random(8192, torch.float32)
    x *= 2.0**exponent / x.double().norm().item()
    assert_row(flat_row(x, triton_device), tensor_stats_reference(x))


def test_counts_beyond_16_bits(triton_device: str):
    """150 tiles of 256 values for each of 128 threads: 2^15 and more zeros each, and as many fp16 subnormals."""
    n_rows = 300 * 512
    x = torch.zeros((n_rows, 64), dtype=torch.float16)
    x[n_rows // 2 :] = 2.0**-24
    row = by_strips(x, triton_device, block_m=512)
    assert row[6:8].tolist() == [n_rows // 2 * 64, n_rows // 2 * 64]
    assert_row(row, tensor_stats_reference(x))


def test_a_long_sum_keeps_its_precision(triton_device: str):
    """One program adds 300 tiles of a constant: fp32 alone would lose 1e-5 of the norm."""
    x = torch.full((300 * 32, 64), 0.1)
    assert_row(by_strips(x, triton_device), tensor_stats_reference(x, full=False))


def test_every_program_of_many_tensors_decides_for_itself(triton_device: str):
    tensors = [torch.full((9000,), value) for value in (1e-30, 1.0, 1e30, NAN, 0.0)]
    with triton_on_cpu() if triton_device == "cpu" else torch.no_grad():
        rows = multi_tensor_stats_triton([x.to(triton_device) for x in tensors]).cpu()
    for row, x in zip(rows, tensors, strict=True):
        assert_row(row, tensor_stats_reference(x, full=False))


# The PTX that the interpreter cannot run, as the PTX manual defines its instructions


def set_lt_u32_f16x2(halves: np.ndarray, limit: int) -> np.ndarray:
    """`abs.f16x2` and `set.lt.u32.f16x2` on uint16 [..., 2], low half first: 0xFFFF or 0 for each, as uint32."""
    magnitudes = (halves & 0x7FFF).view(np.float16)
    below = magnitudes < np.array(limit, dtype=np.uint16).view(np.float16)
    return below[..., 0] * np.uint32(0xFFFF) + below[..., 1] * np.uint32(0xFFFF0000)


def dp2a_lo_s32(a: np.ndarray, b: int, c: np.ndarray) -> np.ndarray:
    """`dp2a.lo.s32.s32`: two signed 16-bit halves of a times the low two signed bytes of b, plus c."""
    a = a.astype(np.uint32).astype(np.int64)
    low, high = [np.where(half < 2**15, half, half - 2**16) for half in (a & 0xFFFF, a >> 16)]
    weights = [byte - 256 * (byte > 127) for byte in (b & 0xFF, b >> 8 & 0xFF)]
    return low * weights[0] + high * weights[1] + c


def count_by_ptx(halves: np.ndarray, limit: str, n: int) -> int:
    """`_add_below` of one thread that holds `halves`, uint16 [K], and counted `n` before."""
    numbers = re.findall(r"0x([0-9A-F]+)", tile_sums._ADD_HALVES.value)
    masks = set_lt_u32_f16x2(halves.reshape(-1, 2), int(limit[4:], 16))
    negated = -masks.sum(dtype=np.uint32)
    return int(dp2a_lo_s32(np.array(negated), int(numbers[0], 16), np.array(n)))


LIMITS = {
    torch.float16: (tile_sums._NOT_ZERO.value, tile_sums._FP16_MIN_NORMAL.value),
    torch.bfloat16: (tile_sums._NOT_ZERO.value, tile_sums._BF16_MIN_NORMAL.value),
}


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("partner", [0, 1, 0x8000, 0x3C00, 0x7E00])
def test_ptx_tells_zeros_and_subnormals_of_every_pattern(dtype: torch.dtype, partner: int):
    """All 65,536 in either half, beside a zero, a subnormal, a minus zero, a normal and a NaN of fp16."""
    patterns = np.arange(2**16, dtype=np.uint16)
    values = torch.from_numpy(patterns.view(np.int16)).view(dtype).double().abs()
    smallest = torch.finfo(dtype).smallest_normal
    beside = torch.from_numpy(np.array([partner], dtype=np.uint16).view(np.int16)).view(dtype).double().abs()
    pairs = np.stack([patterns, np.full_like(patterns, partner)], axis=-1)
    for limit, bound in zip(LIMITS[dtype], (2.0**-200, smallest), strict=True):
        expected = (values < bound).numpy().astype(np.int64), int(beside < bound)
        for low in (0, 1):
            masks = set_lt_u32_f16x2(pairs if low == 0 else pairs[:, ::-1].copy(), int(limit[4:], 16))
            counted = dp2a_lo_s32(-masks, 0x0102, np.array(0))
            np.testing.assert_array_equal(counted, expected[0] + expected[1])


@pytest.mark.parametrize(
    ("n_low", "n_high"), [(0, 0), (1, 0), (0, 1), (16, 16), (3, 32767), (32767, 3), (32767, 32767)]
)
def test_ptx_counts_both_halves(n_low: int, n_high: int):
    """Up to 2^15 - 1 in either half of one tile, on top of what was counted before."""
    halves = np.full((32767, 2), 0x3C00, dtype=np.uint16)
    halves[:n_low, 0] = 0
    halves[:n_high, 1] = 0x8000
    assert count_by_ptx(halves.reshape(-1), tile_sums._NOT_ZERO.value, 70_000) == 70_000 + n_low + n_high


def test_emulated_weights_are_those_of_the_kernel():
    assert "mov.b32 w, 0x0102;" in tile_sums._ADD_HALVES.value
    assert "neg.s32" in tile_sums._ADD_HALVES.value
    assert (tile_sums._COMPARE_1.value + "L" + tile_sums._COMPARE_2.value).count("f16x2") == 2
