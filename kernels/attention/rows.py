"""Causal attention of rows that lie one behind the other, in one call on CUDA.

    for each row r = starts[i] .. starts[i + 1]:   O_r = softmax(scale Q_r K_r^T + causal mask) V_r

torch holds two kernels that are told where rows begin, both with a backward: FlashAttention (arXiv 2307.08691; fp16
and bf16 from sm_80) and the memory-efficient one (arXiv 2112.05682; fp32 too, and fp16 on older chips). They are
called as torch's own layers over them call them (torch/nested/_internal/sdpa.py, torch/nn/attention/varlen.py): the
public one of those is not in every torch from 2.8 on.

Shapes: Q [S, heads, D], K and V [S, kv_heads, D], starts int32 [rows + 1] -> O [S, heads, D].
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .causal import attention_reference

FLASH, EFFICIENT = "FlashAttention", "memory-efficient attention"
# Values of a head. Flash's backward takes more than 192 on some chips only; fp16 is loaded 8 values at a time.
MAX_FLASH_HEAD, MAX_HEAD, HEAD_STEP = 192, 256, 8
CAUSAL_FROM_TOP_LEFT = 1

flash_forward: Any = torch.ops.aten._flash_attention_forward
efficient_forward: Any = torch.ops.aten._efficient_attention_forward


@dataclass(frozen=True)
class Chip:
    """What decides between the kernels.

    Attributes:
        capability: compute capability of an NVIDIA chip.
        flash, efficient: whether torch was built with the kernel and it has not been switched off.
    """

    capability: tuple[int, int]
    flash: bool
    efficient: bool


def chip_of(device: torch.device) -> Chip | None:
    """The chip behind a device; None if it is no NVIDIA GPU."""
    if device.type != "cuda" or torch.version.cuda is None:
        return None
    switches = torch.backends.cuda
    flash = switches.is_flash_attention_available() and switches.flash_sdp_enabled()
    return Chip(_capability(device), flash, switches.mem_efficient_sdp_enabled())


@functools.lru_cache(maxsize=16)
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def kernel_for(chip: Chip | None, dtype: torch.dtype, head_dim: int) -> str | None:
    """FLASH, EFFICIENT, or None where neither takes heads of this size in this dtype."""
    if chip is None or head_dim % HEAD_STEP or head_dim > MAX_HEAD:
        return None
    ampere = chip.capability >= (8, 0)
    if chip.flash and ampere and dtype in (torch.float16, torch.bfloat16) and head_dim <= MAX_FLASH_HEAD:
        return FLASH
    known = dtype in (torch.float32, torch.float16) or (dtype == torch.bfloat16 and ampere)
    return EFFICIENT if chip.efficient and known else None


class Bounds(NamedTuple):
    """Where rows lie.

    Attributes:
        starts: int32 [rows + 1] on the device of the query: where each row begins, and S.
        longest: tokens of the longest row.
    """

    starts: Tensor
    longest: int


def rows_attention(query: Tensor, key: Tensor, value: Tensor, bounds: Bounds, scale: float, kernel: str) -> Tensor:
    """Every position's attention to itself and those before it in its row.

    Args:
        query: [S, heads, D] in a dtype that `kernel` takes.
        key, value: [S, kv_heads, D]; every heads / kv_heads heads of the query read one of them.
        kernel: FLASH or EFFICIENT, from `kernel_for`.

    Returns:
        [S, heads, D] in the same dtype.
    """
    starts, longest = bounds
    query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
    if kernel == FLASH:
        return flash_forward(query, key, value, starts, starts, longest, longest, 0.0, True, False, scale=scale)[0]
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
    batch = (query[None], key[None], value[None])
    wants_grad = torch.is_grad_enabled() and any(x.requires_grad for x in batch)
    return efficient_forward(
        *batch, None, starts, starts, longest, longest, 0.0, CAUSAL_FROM_TOP_LEFT, wants_grad, scale=scale
    )[0][0]


def rows_attention_reference(query: Tensor, key: Tensor, value: Tensor, starts: Tensor, scale: float) -> Tensor:
    """`rows_attention` in plain PyTorch, row by row."""
    lengths = starts.diff().tolist()
    rows = zip(*(x.transpose(0, 1)[None].split(lengths, dim=2) for x in (query, key, value)), strict=True)
    return torch.cat([attention_reference(q, k, v, scale)[0] for q, k, v in rows])
