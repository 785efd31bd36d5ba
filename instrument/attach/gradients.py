"""Statistics of all gradients of a step, whatever their dtype and place: one pass for those that are alike.

Shapes: P gradients of any shape -> rows float64 [P, 9] on one device; meanings in kernels/statistics/tensor_stats.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from ...kernels.statistics.multi_tensor import multi_tensor_stats
from ...kernels.statistics.tensor_stats import FIELDS, N_FIELDS, tensor_stats
from ...kernels.statistics.tile_stats import FAST_DTYPES

_N = FIELDS.index("n")
_COUNTED_BESIDES = slice(FIELDS.index("n_overflow"), FIELDS.index("n_zero") + 1)


def gradient_rows(parameters: Sequence[nn.Parameter], device: torch.device) -> torch.Tensor:
    """Rows of the gradients as they are in memory; one that is missing counts as zero.

    Of a sparse gradient the values that are stored are read, of one that is spread over processes this one's.

    Args:
        device: where the rows go.
    """
    alike: dict[tuple[torch.device, torch.dtype], list[tuple[int, torch.Tensor]]] = defaultdict(list)
    for at, parameter in enumerate(parameters):
        if parameter.grad is not None:
            held = _held(parameter.grad)
            alike[held.device, held.dtype].append((at, held.contiguous()))
    rows = torch.zeros(len(parameters), N_FIELDS, dtype=torch.float64, device=device)
    if [len(found) for found in alike.values()] != [len(parameters)]:
        rows[:, _COUNTED_BESIDES] = torch.nan
        rows[:, _N] = torch.tensor([float(parameter.numel()) for parameter in parameters]).to(rows)
    for (_, dtype), found in alike.items():
        tensors = [tensor for _, tensor in found]
        fast = dtype in FAST_DTYPES
        own = multi_tensor_stats(tensors) if fast else torch.stack([tensor_stats(x, full=False) for x in tensors])
        if len(found) == len(parameters):
            return own.to(device)
        rows[torch.tensor([at for at, _ in found]).to(device)] = own.to(device)
    return rows


def dense_gradients(parameters: Sequence[nn.Parameter]) -> list[torch.Tensor]:
    """The gradients themselves, as plain tensors."""
    return [torch.zeros_like(p) if p.grad is None else _held(p.grad) for p in parameters]


def _held(gradient: torch.Tensor) -> torch.Tensor:
    """What of a gradient lies in this process's memory."""
    local = gradient.to_local() if isinstance(gradient, DTensor) else gradient
    return local.coalesce().values() if local.is_sparse else local
