"""Statistics of what an element-wise kernel rounds: its fp32 results on their way to 16 bits.

    slot[i] = row of the i-th result, with overflow and underflow        float64 [sites, 9], as in reduce.py

A kernel that is to count shares its tiles among at most MAX_PROGRAMS programs of consecutive tiles; each leaves one
partial per result. Without counting every tile is a program of its own and nothing of that runs.
"""

import torch
from torch import Tensor

from ..backend import cdiv
from .reduce import N_FIELDS, N_PARTIALS, reduce_partials
from .tensor_stats_aten import round_with_stats_cpu
from .tile_stats import MAX_PROGRAMS


def share(n_tiles: int, counted: bool) -> tuple[int, int]:
    """Programs, and consecutive tiles for each."""
    tiles_per_program = max(1, cdiv(n_tiles, MAX_PROGRAMS)) if counted else 1
    return cdiv(n_tiles, tiles_per_program), tiles_per_program


def new_partials(like: Tensor, n_results: int, n_programs: int, counted: bool) -> Tensor | None:
    """float64 [results, programs, 8] on the device of `like`, or None: a kernel that is given none counts nothing."""
    return like.new_empty((n_results, n_programs, N_PARTIALS), dtype=torch.float64) if counted else None


def rows_of(like: Tensor, partials: Tensor | None) -> Tensor:
    """Rows [results, 9] of results as large as `like`; [0, 9] if nothing was counted."""
    return new_rows(like, 0) if partials is None else reduce_partials(partials, like.numel())


def new_rows(like: Tensor, n_results: int) -> Tensor:
    """float64 [results, 9], not filled."""
    return like.new_empty((n_results, N_FIELDS), dtype=torch.float64)


def rounded(accs: list[Tensor], dtype: torch.dtype, counted: bool) -> tuple[list[Tensor], Tensor]:
    """On the CPU: fp32 results in a dtype, and their rows [results, 9] or [0, 9]."""
    if not counted:
        return [acc.to(dtype) for acc in accs], new_rows(accs[0], 0)
    found = [round_with_stats_cpu(acc, dtype, full=False) for acc in accs]
    return [stored for stored, _ in found], torch.stack([row for _, row in found])
