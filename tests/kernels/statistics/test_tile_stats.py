"""`tile_partials` in a kernel that rounds an accumulator: overflow and underflow, and masks on both sides."""

import pytest
import torch
import triton
import triton.language as tl
from lora_train.kernels.backend import jit
from lora_train.kernels.statistics import tensor_stats_aten, tile_stats
from lora_train.kernels.statistics.reduce import N_PARTIALS, reduce_partials

from ..helpers import accumulator, assert_row


@jit
def rounding_kernel(acc_ptr, stored_ptr, partials_ptr, n_rows, n_cols, BLOCK: tl.constexpr):
    """What a fused epilogue does: a two-dimensional tile, masked on both sides, stored and counted."""
    pid = tl.program_id(0).to(tl.int64)
    rows = pid * BLOCK + tl.arange(0, BLOCK)[:, None]
    cols = tl.arange(0, 2 * BLOCK)[None, :]
    total = tile_stats.no_partials(True, True)
    for start in range(0, n_cols, 2 * BLOCK):  # type: ignore[reportArgumentType]
        mask = (rows < n_rows) & (start + cols < n_cols)
        offsets = rows * n_cols + start + cols
        acc = tl.load(acc_ptr + offsets, mask=mask, other=1e30)
        stored = acc.to(stored_ptr.dtype.element_ty)
        tl.store(stored_ptr + offsets, stored, mask=mask)
        total = tile_stats.add_partials(total, tile_stats.tile_partials(acc, stored, mask, True, True))
    tile_stats.write_partials(partials_ptr, pid, total)


def round_in_kernel(acc: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    rows, cols = acc.shape
    stored = torch.empty_like(acc, dtype=dtype)
    programs = max(1, triton.cdiv(rows, 8))
    partials = torch.empty((programs, N_PARTIALS), dtype=torch.float64, device=acc.device)
    rounding_kernel[(programs,)](acc, stored, partials, rows, cols, BLOCK=8, enable_fp_fusion=False)
    return stored.cpu(), reduce_partials(partials, acc.numel()).cpu()


@pytest.mark.parametrize("shape", [(1, 63), (123, 5), (9, 431), (8, 16)])
def test_kernel_counts_overflow_and_underflow(shape: tuple[int, int], triton_device: str):
    acc, n_overflow, n_underflow = accumulator(torch.float16, *shape)
    stored, row = round_in_kernel(acc.to(triton_device), torch.float16)
    expected, expected_row = tensor_stats_aten.round_with_stats_reference(acc, torch.float16)
    assert row[4:6].tolist() == [n_overflow, n_underflow]
    torch.testing.assert_close(stored, expected, rtol=0, atol=0, equal_nan=True)
    assert_row(row, expected_row)


def test_kernel_rounds_to_fp32_without_overflow(triton_device: str):
    acc, _, _ = accumulator(torch.bfloat16, 9, 63)
    _, row = round_in_kernel(acc.to(triton_device), torch.float32)
    assert_row(row, tensor_stats_aten.round_with_stats_reference(acc, torch.float32)[1])
    assert row[4:6].tolist() == [0, 0]


@pytest.mark.gpu
def test_kernel_rounds_to_bf16():
    """The interpreter truncates where hardware rounds, so only a GPU can tell."""
    acc, n_overflow, n_underflow = accumulator(torch.bfloat16, 9, 63)
    _, row = round_in_kernel(acc.cuda(), torch.bfloat16)
    assert row[4:6].tolist() == [n_overflow, n_underflow]
    assert_row(row, tensor_stats_aten.round_with_stats_reference(acc, torch.bfloat16)[1])
