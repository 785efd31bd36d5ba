"""A call of every function of the C files on small tensors, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy
import torch
from lora_train.kernels import cpu
from torch import Tensor

M, C, R = 70, 48, 5
X = torch.randn(M, C, generator=torch.Generator().manual_seed(0))


def read(
    x: Tensor, row: numpy.ndarray | None = None, across: bool = False, examples: cpu.Squares | None = None
) -> list[Any]:
    """Everything that a pass over x [M, C] can give."""
    m, c = x.shape
    matrices = [X[:2, :c].clone(), X[2:R, :c].clone()]
    matrices = [matrix.t().contiguous() for matrix in matrices] if across else matrices
    into = [torch.zeros_like(matrix) for matrix in matrices]
    rows = list(numpy.zeros((2, 9)))
    to, wide = torch.zeros(m, R), torch.zeros(m, c)
    projection = cpu.Stack(matrices, across, [2.0, 0.5]), to
    outer = torch.ones(m, R + 3)[:, 1 : 1 + R], cpu.Stack(into, across, rows=rows, examples=examples)
    finite = cpu.read(x, projection=projection, outer=outer, wide=wide, row=row, dropout=(3, 0.25))
    return [to, wide, *into, *rows, finite, *([] if examples is None else [examples.into])]


def update(x: Tensor, dtype: torch.dtype) -> list[Any]:
    """x += L R, rounded."""
    stored = x if dtype == torch.float32 else torch.empty_like(x, dtype=dtype)
    row = numpy.zeros(9)
    cpu.update(x, torch.ones(len(x), R), cpu.Stack([X[:R, : x.shape[1]].clone()]), stored, row=row)
    return [x, stored, row]


def attention(q: Tensor, k: Tensor, v: Tensor) -> list[Any]:
    """Forward, then backward."""
    out, lse = torch.zeros_like(q), torch.zeros(q.shape[:3])
    cpu.attention(cpu.Attention(q, k, v, out, lse), 0.3)
    gradients = [torch.zeros_like(x) for x in (q, k, v)]
    cpu.attention(cpu.Attention(q, k, v, out, lse), 0.3, (q, *gradients))
    return [out, lse, *gradients]


def product(x: Tensor, weight: Tensor) -> list[Any]:
    """X W^T."""
    out = torch.zeros(len(x), len(weight))
    return [cpu.product(x, weight, out, transposed=True), out]


def heads(count: int) -> Tensor:
    """[B, heads, S, D]"""
    return torch.randn(2, count, 37, 16, generator=torch.Generator().manual_seed(count))


def calls() -> dict[str, Callable[[], Any]]:
    """By function; each makes its tensors, calls, and gives what was written."""
    squares = numpy.ones((4, 2))
    half, weight, angles = X.half(), X[0].abs(), heads(1)[:, 0, :, :8].contiguous()
    found: dict[str, Callable[[], Any]] = {
        "stats": lambda: [cpu.stats(X, True)],
        "round_with_stats": lambda: [cpu.round_with_stats(X, stored := torch.zeros_like(half)), stored],
        "exponents": lambda: [cpu.exponents(half)],
        "norm": lambda: [*cpu.norm(half, weight, 1e-5)],
        "norm_backward": lambda: [cpu.norm_backward(half, half, weight, X[:, 0].abs().contiguous())],
        "gate": lambda: [cpu.gate(half, half)],
        "gate_backward": lambda: [*cpu.gate_backward(half, half, half)],
        "rotate": lambda: [cpu.rotate(heads(2).half(), angles, angles, False)],
        "read": lambda: read(half, numpy.zeros(9)),
        "read across": lambda: read(X, numpy.zeros(9), across=True),
        "read of examples": lambda: read(half, examples=cpu.Squares(numpy.array([0, 20, 20, 50, M]), squares.copy())),
        "update": lambda: update(X.clone(), torch.float32),
        "update rounded": lambda: update(X.clone(), torch.bfloat16),
        "attention": lambda: attention(heads(4), heads(2), heads(2)),
    }
    if cpu.TILES:
        found["product"] = lambda: product(half, half[:40])
    return found
