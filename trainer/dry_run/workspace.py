"""Bytes that the fused operators use while they run.

A fake operator shows what it returns and nothing of what happens inside, so that is counted here, from the code in
kernels/. M tokens, K in, N out, r the rank, V the vocabulary. On the CPU 16-bit tensors are widened to float32, where
the chip does not multiply them in tiles; the loops over a group hold the last projection's tensors until the next one's
exist.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...kernels import cpu
from ...kernels.cross_entropy import CPU_CHUNK, CUDA_CHUNK
from ...kernels.frozen.product import WIDEN_BLOCK, multiplies_in_tiles
from ...kernels.lora_linear.scratch import backward_scratch, forward_scratch

# Rows of a share of kernels/cpu/low_rank.c, of which each sums a LoRA gradient of its own, and how many there are.
SHARE_ROWS, MAX_SHARES = 64, 32
# Values at a time without the compiled statistics: masks of one byte, and their float copies.
ATEN_STATISTICS = 6


def workspace(name: str, arguments: Sequence[Any]) -> int:
    """Bytes that one call of an operator, by its qualified name, gives back when it returns; 0 if it is not ours."""
    known = {
        "lora_train::lora_linear": _lora_linear,
        "lora_train::lora_linear_backward": _lora_linear_backward,
        "lora_train::linear_cross_entropy": _cross_entropy,
    }
    return known[name](*arguments) if name in known else 0


def room(name: str, arguments: Sequence[Any]) -> int:
    """Bytes that an operator takes at its first call and never gives back: on the CPU, the room for logits."""
    if name != "lora_train::linear_cross_entropy" or arguments[0].is_cuda:
        return 0
    n_tokens, vocabulary = arguments[0].shape[0], arguments[1].shape[0]
    return 4 * vocabulary * max(1, min(n_tokens, CPU_CHUNK // vocabulary))


def _n_bytes(dtype: torch.dtype) -> int:
    return torch.empty(0, dtype=dtype, device="meta").element_size()


def _decoded(weights: list[Tensor], formats: list[int], sizes: list[int], dtype: torch.dtype) -> list[int]:
    """Bytes to make each weight dense in a dtype: 0 where it is so already."""
    found, start = [], 0
    for size, n_tensors in zip(sizes, formats[::3], strict=True):
        found.append(0 if n_tensors == 1 and weights[start].dtype == dtype else size * _n_bytes(dtype))
        start += n_tensors
    return found


def _lora_linear(
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    lora_A: list[Tensor],
    lora_B: list[Tensor],
    seed: Tensor | None,
    slot: Tensor | None,
    formats: list[int],
    scalings: list[float],
    dropout_p: float,
) -> int:
    m, k = x.shape
    sizes = [b.shape[0] * k for b in lora_B]
    outs = [m * b.shape[0] for b in lora_B]
    if x.is_cuda:
        ranks = [a.shape[0] for a in lora_A]
        return max(_decoded(weights, formats, sizes, x.dtype)) + forward_scratch(m, k, sum(ranks), x.dtype, x.device)
    statistics = ATEN_STATISTICS * max(outs) if slot is not None and not cpu.AVAILABLE else 0
    packed = [size if n > 1 else 0 for size, n in zip(sizes, formats[::3], strict=True)]
    dropped = _dropped(m * k, dropout_p)
    if x.dtype == torch.float32:
        return max(dropped, _loop([4 * n for n in packed], [0] * len(sizes), [0] * len(sizes)) + statistics)
    narrow = [_n_bytes(x.dtype) * n for n in packed]
    in_tiles = multiplies_in_tiles(x)
    wide = [0] * len(sizes) if in_tiles else _widened(weights, formats, sizes)
    in_loop = statistics + _loop(narrow, [4 * n for n in outs], wide)
    return (0 if in_tiles else 4 * m * k) + max(dropped, in_loop)


def _dropped(n: int, dropout_p: float) -> int:
    """Bytes of the float32 copy that ATen drops values of; the compiled loops drop them on the way."""
    return 4 * n if dropout_p > 0 and not cpu.AVAILABLE else 0


def _widened(weights: list[Tensor], formats: list[int], sizes: list[int]) -> list[int]:
    """Most bytes of each weight that are there in float32 at once."""
    starts = [sum(formats[: 3 * i : 3]) for i in range(len(sizes))]
    return [
        0 if n == 1 and weights[start].dtype == torch.float32 else 4 * min(size, WIDEN_BLOCK)
        for size, n, start in zip(sizes, formats[::3], starts, strict=True)
    ]


def _loop(dense: list[int], kept: list[int], inside: list[int]) -> int:
    """Most bytes while a loop rebinds two names per turn, each old value alive until the new one is made, and a product
    takes some inside.
    """
    most, old = 0, (0, 0)
    for new_dense, new_kept, within in zip(dense, kept, inside, strict=True):
        most = max(most, new_dense + sum(old), new_dense + new_kept + old[1] + within)
        old = new_dense, new_kept
    return most


def _lora_linear_backward(
    grads: list[Tensor],
    x: Tensor,
    h: Tensor,
    weights: list[Tensor],
    lora_A: list[Tensor],
    lora_B: list[Tensor],
    seed: Tensor | None,
    formats: list[int],
    scalings: list[float],
    dropout_p: float,
    needs_dx: bool,
    with_stats: bool,
) -> int:
    m, k = x.shape
    sizes = [b.shape[0] * k for b in lora_B]
    outs = [m * b.shape[0] for b in lora_B]
    if x.is_cuda:
        shapes = [(b.shape[0], b.shape[1]) for b in lora_B]
        return max(*_decoded(weights, formats, sizes, x.dtype), backward_scratch(m, k, shapes, x.dtype, x.device))
    statistics = ATEN_STATISTICS * max(*outs, m * k) if with_stats and not cpu.AVAILABLE else 0
    packed = [size if n > 1 else 0 for size, n in zip(sizes, formats[::3], strict=True)]
    dropped = _dropped(m * k, dropout_p)
    shares = min(MAX_SHARES, math.ceil(m / SHARE_ROWS)) if cpu.AVAILABLE else 0
    parts = 4 * (shares + 1) * max(h.shape[1] * k, *(b.numel() for b in lora_B))
    if x.dtype == torch.float32:
        in_loop = _loop([4 * n for n in packed], [0] * len(sizes), [0] * len(sizes))
        return parts + max(in_loop, 4 * packed[-1] + dropped)
    narrow = [_n_bytes(x.dtype) * n for n in packed]
    dx = 4 * m * k if needs_dx else 0
    wide = [4 * n if needs_dx and not multiplies_in_tiles(x) else 0 for n in outs]
    inside = _widened(weights, formats, sizes) if any(wide) else [0] * len(sizes)
    in_loop = dx + _loop(narrow, wide, inside)
    widened = 0 if cpu.AVAILABLE else 4 * m * k
    after = dx + narrow[-1] + wide[-1] + widened + dropped
    return statistics + parts + max(in_loop, after)


def _cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    needs_grad: bool,
    count_correct: bool,
) -> int:
    n_tokens, (vocabulary, width) = hidden.shape[0], weight.shape
    rounded = hidden.numel() * _n_bytes(dtype) if hidden.dtype != dtype else 0
    if hidden.is_cuda:
        step = max(1, min(n_tokens, CUDA_CHUNK // vocabulary))
        cast = weight.numel() * _n_bytes(dtype) if weight.dtype != dtype else 0
        return rounded + cast + step * (vocabulary * (4 + _n_bytes(dtype)) + 4 * width)
    is_wide = weight.dtype == torch.float32
    step = max(1, min(n_tokens, CPU_CHUNK // vocabulary))
    in_tiles = not is_wide and multiplies_in_tiles(hidden.to(dtype))
    blocks = 0 if is_wide or in_tiles else 4 * min(WIDEN_BLOCK, weight.numel())
    widened = 0 if dtype == torch.float32 or in_tiles else 4 * step * width
    return rounded + widened + blocks
