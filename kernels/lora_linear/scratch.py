"""Bytes that a LoRA linear takes on a GPU and gives back before it returns, by the shapes of launch.py.

M tokens, K in, R the sum of the ranks. Partials of statistics are left out: 64 bytes a program, and they are kept until
rows are written.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..backend import has_tensor_cores, n_multiprocessors
from .gemm import BLOCK
from .projections import MAX_GROUP
from .shapes import down_shape, read_shape

FLOAT = 4


def forward_scratch(m: int, k: int, rank: int, dtype: torch.dtype, device: torch.device) -> int:
    """The parts of H where it is split; on sm_75 blocks of X and of a LoRA part in fp32."""
    if not has_tensor_cores(device):
        return 2 * FLOAT * min(BLOCK, m * k)
    splits = down_shape(m, k, rank, dtype, n_multiprocessors(device)).splits
    return FLOAT * splits * m * rank if splits > 1 else 0


def backward_scratch(
    m: int, k: int, shapes: Sequence[tuple[int, int]], dtype: torch.dtype, device: torch.device
) -> int:
    """G, and the most of: its parts with those of dB, those of dB with those of dA.

    Args:
        shapes: N_i and r_i of each projection.
    """
    all_ranks = sum(rank for _, rank in shapes)
    g = FLOAT * m * all_ranks
    most = 0
    for start in range(0, len(shapes), MAX_GROUP):
        some = shapes[start : start + MAX_GROUP]
        cols, ranks = tuple(n for n, _ in some), tuple(rank for _, rank in some)
        n_db = sum(n * rank for n, rank in some)
        if not has_tensor_cores(device):
            most = max(most, FLOAT * (n_db + sum(ranks) * k + 2 * min(BLOCK, m * max(*cols, k))))
            continue
        n_sm = n_multiprocessors(device)
        grad = read_shape("grad", m, cols, ranks, dtype, n_sm)
        of_b = grad.splits * n_db
        of_a = read_shape("dA", m, (k,), (sum(ranks),), dtype, n_sm).splits * sum(ranks) * k
        most = max(most, FLOAT * (grad.n_strips * m * sum(ranks) + of_b), FLOAT * (of_b + of_a))
    return g + most
