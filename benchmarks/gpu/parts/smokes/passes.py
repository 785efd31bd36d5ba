"""The smokes of kernels that pass over one tensor: statistics, histogram, loss, NF4 decode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lora_train.kernels.cross_entropy import linear_cross_entropy, linear_cross_entropy_reference
from lora_train.kernels.frozen.nf4 import nf4_decode
from lora_train.kernels.statistics.tensor_stats import (
    exponent_histogram,
    exponent_histogram_reference,
    multi_tensor_stats,
    tensor_stats,
    tensor_stats_reference,
)
from torch import Tensor

from ...device import DEVICE

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
Cases = list[tuple[str, Callable[[], str]]]


def cases(small: bool) -> Cases:
    """Name -> what is wrong, or nothing."""
    sizes = (1, 255, 4097) if small else (1, 255, 4097, 2048 * 4096 + 1)
    found: Cases = []
    for n in sizes:
        for dtype in DTYPES:
            found.append((f"tensor_stats {n} {str(dtype)[6:]}", lambda n=n, dtype=dtype: stats(values(n, dtype))))
            found.append((f"histogram {n} {str(dtype)[6:]}", lambda n=n, dtype=dtype: histogram(values(n, dtype))))
    found.append(("multi_tensor_stats", lambda: many([values(n, torch.float32) for n in sizes])))
    rows, vocabulary = ((1, 17), 97) if small else ((1, 17, 1025), 50257)
    for m in rows:
        for dtype in DTYPES:
            name = f"cross_entropy {m} x {vocabulary} {str(dtype)[6:]}"
            found.append((name, lambda m=m, dtype=dtype: loss(m, vocabulary, dtype)))
    for nested in (False, True):
        found.append((f"nf4_decode nested={nested}", lambda nested=nested: nf4(64 if small else 4096, nested)))
    return found


def values(n: int, dtype: torch.dtype) -> Tensor:
    """Random values with a few of every kind of trouble."""
    x = torch.randn(n, generator=torch.Generator().manual_seed(n))
    trouble = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-7])
    if n > len(trouble):
        x[n // 2 : n // 2 + len(trouble)] = trouble
    return x.to(dtype).to(DEVICE)


def same_row(row: Tensor, wanted: Tensor) -> str:
    """Counts and largest value equal, the norm to 1e-6."""
    equal = torch.equal(row[1:].nan_to_num(-1), wanted[1:].nan_to_num(-1))
    near = torch.allclose(row[:1].sqrt(), wanted[:1].sqrt(), rtol=1e-6, atol=0, equal_nan=True)
    return "" if equal and near else f"{row.tolist()} is not {wanted.tolist()}"


def stats(x: Tensor) -> str:
    return same_row(tensor_stats(x, full=False), tensor_stats_reference(x, full=False))


def many(tensors: list[Tensor]) -> str:
    rows = multi_tensor_stats(tensors)
    wanted = [tensor_stats_reference(x, full=False) for x in tensors]
    return "; ".join(filter(None, (same_row(row, one) for row, one in zip(rows, wanted, strict=True))))


def histogram(x: Tensor) -> str:
    counts, wanted = exponent_histogram(x), exponent_histogram_reference(x)
    return "" if torch.equal(counts, wanted.to(counts.device)) else "counts differ"


def loss(m: int, vocabulary: int, dtype: torch.dtype) -> str:
    """16-bit operands are exact here; the gradient's operand is rounded once, and its sum walks over the vocabulary."""
    generator = torch.Generator(DEVICE).manual_seed(m)
    hidden = torch.randn(m, 64, generator=generator, device=DEVICE).to(dtype).requires_grad_()
    weight = (torch.randn(vocabulary, 64, generator=generator, device=DEVICE) / 8).to(dtype)
    labels = torch.randint(vocabulary, (m,), generator=generator, device=DEVICE)
    total, correct = linear_cross_entropy(hidden, weight, labels, count_correct=True)
    (grad,) = torch.autograd.grad(total, hidden)
    wide = hidden.detach().double().requires_grad_()
    wanted, wanted_correct = linear_cross_entropy_reference(wide, weight.double(), labels)[:2]
    (wanted_grad,) = torch.autograd.grad(wanted, wide)
    unit = {torch.float32: 2e-6, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}[dtype]
    unit = max(unit, 2.0**-24 * vocabulary**0.5)
    error = float((total.detach().double() - wanted.detach()).abs() / wanted.detach())
    grad_error = float((grad.double() - wanted_grad).norm() / wanted_grad.norm())
    if not (error <= 1e-5 and grad_error <= 2 * unit):
        return f"loss is off by {error:.2e}, its gradient by {grad_error:.2e}"
    return "" if correct is None or int(correct) == int(wanted_correct) else f"{int(correct)} correct"


def nf4(n: int, nested: bool) -> str:
    """Equal to bitsandbytes to the last bit."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    weight = torch.randn(n, 128, generator=torch.Generator().manual_seed(n)).to(torch.float16).to(DEVICE)
    packed, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=nested)
    assert state is not None
    second: Any = state.state2
    inner = (second.absmax, second.code, state.offset) if nested else (None, None, None)
    found = nf4_decode(
        packed, state.absmax, state.code, *inner, weight.shape, state.blocksize, 256, torch.float16,
    )  # fmt: skip
    wanted = dequantize_4bit(packed, state)
    return "" if torch.equal(found, wanted) else f"{int((found != wanted).sum())} values differ"
