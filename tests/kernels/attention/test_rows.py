"""Attention of many rows in one call: which kernel is asked, for what, and on a GPU what it computes."""

from __future__ import annotations

import itertools

import pytest
import torch
from lora_train.kernels.attention import rows as module
from lora_train.kernels.attention.causal import attention_reference
from lora_train.kernels.attention.rows import (
    EFFICIENT,
    FLASH,
    Bounds,
    Chip,
    chip_of,
    kernel_for,
    rows_attention,
    rows_attention_reference,
)
from torch import Tensor

from .rows_stand_in import H100, T4, install

LENGTHS = (7, 1, 64, 3, 129)
FP16, BF16, FP32, FP64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
# ||a - b|| / ||b||: P, O and the gradients of both are each rounded to the dtype once; a GPU may take fp32 operands
# apart into TF32 (2^-11).
TOLERANCE = {FP32: 2**-10, FP16: 2**-9, BF16: 2**-6}


@pytest.mark.parametrize(
    ("chip", "dtype", "head_dim", "expected"),
    [
        (None, FP16, 64, None),
        (H100, FP16, 64, FLASH),
        (H100, BF16, 128, FLASH),
        (H100, BF16, 192, FLASH),
        (H100, BF16, 256, EFFICIENT),
        (H100, BF16, 264, None),
        (H100, FP16, 36, None),
        (H100, FP32, 64, EFFICIENT),
        (H100, FP64, 64, None),
        (T4, FP16, 128, EFFICIENT),
        (T4, FP32, 128, EFFICIENT),
        (T4, BF16, 128, None),
        (Chip((7, 5), True, True), FP16, 64, EFFICIENT),
        (Chip((8, 6), False, True), BF16, 64, EFFICIENT),
        (Chip((8, 6), False, False), BF16, 64, None),
        (Chip((8, 6), True, False), FP32, 64, None),
    ],
    ids=str,
)
def test_which_kernel(chip, dtype, head_dim, expected):
    assert kernel_for(chip, dtype, head_dim) == expected


def test_the_cpu_is_no_chip_and_switches_are_obeyed(monkeypatch):
    assert chip_of(torch.device("cpu")) is None
    monkeypatch.setattr("torch.version.cuda", "13.0")
    monkeypatch.setattr("torch.backends.cuda.is_flash_attention_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (8, 9))
    module._capability.cache_clear()
    device = torch.device("cuda", 0)
    try:
        assert chip_of(device) == Chip((8, 9), True, True)
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            assert chip_of(device) == Chip((8, 9), False, False)
        monkeypatch.setattr("torch.version.cuda", None)  # ROCm names its devices cuda
        assert chip_of(device) is None
    finally:
        module._capability.cache_clear()


def heads(n_heads: int, n_kv_heads: int, dtype: torch.dtype, head_dim: int = 16) -> tuple[list[Tensor], Tensor, Tensor]:
    """Q, K and V, where each row begins, and dO."""
    generator = torch.Generator().manual_seed(0)
    n = sum(LENGTHS)
    made = [torch.randn(n, each, head_dim, generator=generator).to(dtype) for each in (n_heads, n_kv_heads, n_kv_heads)]
    starts = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    return [x.requires_grad_() for x in made], starts, torch.randn(n, n_heads, head_dim, generator=generator).to(dtype)


def test_the_reference_is_attention_row_by_row():
    (q, k, v), starts, _ = heads(4, 2, FP64)
    found = rows_attention_reference(q, k, v, starts, 0.3)
    for first, end in itertools.pairwise(starts.tolist()):
        q_row, k_row, v_row = (x[first:end].transpose(0, 1)[None] for x in (q, k, v))
        torch.testing.assert_close(found[first:end], attention_reference(q_row, k_row, v_row, 0.3)[0])


@pytest.mark.parametrize(("n_heads", "n_kv_heads"), [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize(("kernel", "dtype"), [(FLASH, FP16), (EFFICIENT, FP16), (EFFICIENT, FP32)], ids=str)
def test_what_a_kernel_is_asked_for_is_the_attention_of_the_rows(monkeypatch, kernel, dtype, n_heads, n_kv_heads):
    called = install(monkeypatch)
    tensors, starts, grad = heads(n_heads, n_kv_heads, dtype)
    out = rows_attention(tensors[0], tensors[1], tensors[2], Bounds(starts, max(LENGTHS)), 0.3, kernel)
    assert called == ["flash" if kernel == FLASH else "efficient"]
    check(tensors, starts, grad, out)


def check(tensors: list[Tensor], starts: Tensor, grad: Tensor, out: Tensor) -> None:
    """Output and gradients against fp64 of the same values."""
    exact = [x.detach().cpu().double().requires_grad_() for x in tensors]
    want = rows_attention_reference(exact[0], exact[1], exact[2], starts.cpu(), 0.3)
    found, expected = torch.autograd.grad(out, tensors, grad), torch.autograd.grad(want, exact, grad.cpu().double())
    for ours, theirs in zip((out, *found), (want, *expected), strict=True):
        error = (ours.cpu().double() - theirs).norm()
        assert error <= TOLERANCE[out.dtype] * theirs.norm(), float(error / theirs.norm())


def test_torch_knows_the_arguments_and_has_a_backward_for_both():
    """By the operators' shape functions: no kernel runs."""
    starts = torch.zeros(len(LENGTHS) + 1, dtype=torch.int32, device="meta")
    for kernel in (FLASH, EFFICIENT):
        tensors = [x.detach().to("meta").requires_grad_() for x in heads(4, 2, FP16)[0]]
        out = rows_attention(tensors[0], tensors[1], tensors[2], Bounds(starts, max(LENGTHS)), 0.3, kernel)
        assert out.shape == (sum(LENGTHS), 4, 16)
        assert out.requires_grad
        if kernel == FLASH:  # torch 2.13's shape function of the other backward takes `scale` twice
            grads = torch.autograd.grad(out, tensors, torch.empty_like(out))
            assert [x.shape for x in grads] == [x.shape for x in tensors]


@pytest.mark.gpu
@pytest.mark.parametrize("head_dim", [16, 64, 128])
@pytest.mark.parametrize(("n_heads", "n_kv_heads"), [(4, 4), (4, 2)])
@pytest.mark.parametrize("dtype", [FP32, FP16, BF16], ids=str)
def test_every_kernel_that_this_gpu_has(dtype, n_heads, n_kv_heads, head_dim):
    chip = chip_of(torch.device("cuda"))
    assert chip is not None
    kernels = {
        kernel_for(chip, dtype, head_dim),
        kernel_for(Chip(chip.capability, False, chip.efficient), dtype, head_dim),
    }
    assert kernels != {None}
    tensors, starts, grad = heads(n_heads, n_kv_heads, dtype, head_dim)
    tensors, on_device = [x.detach().cuda().requires_grad_() for x in tensors], starts.cuda()
    for kernel in filter(None, kernels):
        torch.cuda.set_sync_debug_mode("error")
        try:
            out = rows_attention(tensors[0], tensors[1], tensors[2], Bounds(on_device, max(LENGTHS)), 0.3, kernel)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        check(tensors, starts, grad.cuda(), out)
