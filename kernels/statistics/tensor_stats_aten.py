"""Statistics on the CPU, and in plain PyTorch on any device. Meanings: tensor_stats.py.

    cpu        one pass of cpu/stats.c, else `aten`
    aten       a pass per statistic, without a compiled extension
    reference  float64, any floating dtype

`round_with_stats_*` also round an fp32 accumulator, and so know what overflowed and underflowed.
"""

import torch

from .. import cpu
from ..ledger import FLOAT, Ledger, size, statistics
from .reduce import FIELDS, N_FIELDS
from .tile_stats import flat

ROW = 8 * N_FIELDS

ATEN_BLOCK = 1024

N_OVERFLOW = FIELDS.index("n_overflow")  # n_underflow follows it


def counts_small(dtype: torch.dtype, full: bool) -> bool:
    return full or dtype != torch.float32


def tensor_stats_aten(x: torch.Tensor, full: bool) -> torch.Tensor:
    """`tensor_stats` on the CPU without a compiled extension, fp16, bf16 or fp32.

    Values and squares are finite and in the fp32 range almost always; one host-side look at the sum finds the
    tensors where they are not, and only those pay for float64.
    """
    x = flat(x)
    values = x.float()
    sumsq = _sumsq_aten(values)
    if not 1e-25 < sumsq < 1e38:
        return tensor_stats_reference(x, full)
    low, high = torch.aminmax(values)
    row = torch.full((N_FIELDS,), float("nan"), dtype=torch.float64)
    row[0], row[1], row[2], row[3], row[-1] = sumsq, max(-low.item(), high.item()), 0, 0, x.numel()
    if counts_small(x.dtype, full):
        n_zero = x.numel() - int(torch.count_nonzero(x))
        row[6] = int((values.abs() < torch.finfo(x.dtype).smallest_normal).sum()) - n_zero
        row[7] = n_zero
    return row


def _sumsq_aten(values: torch.Tensor) -> float:
    """Sum of squares of a flat fp32 tensor: fp32 in short blocks, float64 beyond."""
    whole = values.numel() // ATEN_BLOCK * ATEN_BLOCK
    norms = torch.linalg.vector_norm(values[:whole].view(-1, ATEN_BLOCK), dim=1).double()
    rest = torch.linalg.vector_norm(values[whole:]).item() if whole < values.numel() else 0.0
    return norms.square().sum().item() + rest * rest


def tensor_stats_cpu(x: torch.Tensor, full: bool) -> torch.Tensor:
    """`tensor_stats` of an fp16, bf16 or fp32 tensor on the CPU."""
    if cpu.AVAILABLE:
        return cpu.stats(flat(x), counts_small(x.dtype, full))
    return tensor_stats_aten(x, full)


def tensor_stats_reference(x: torch.Tensor, full: bool = True) -> torch.Tensor:
    """`tensor_stats` in plain PyTorch, float64, for any floating dtype, one pass per statistic.

    The square of an fp64 value may leave the fp64 range; `sumsq` is infinite then.
    """
    values = x.detach().double()
    magnitude = values.abs()
    finite = magnitude[magnitude.isfinite()]
    row = torch.full((N_FIELDS,), float("nan"), dtype=torch.float64, device=x.device)
    row[0] = finite.square().sum()
    row[1] = finite.amax() if finite.numel() else 0.0
    row[2] = values.isnan().sum()
    row[3] = values.isinf().sum()
    if counts_small(x.dtype, full):
        smallest = torch.finfo(x.dtype).smallest_normal
        row[6] = ((magnitude > 0) & (magnitude < smallest)).sum()
        row[7] = (magnitude == 0).sum()
    row[8] = x.numel()
    return row


def round_with_stats_cpu(acc: torch.Tensor, dtype: torch.dtype, full: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """Rounds a CPU accumulator to the stored dtype and counts what that did to it, in one pass.

    Args:
        acc: fp32, any shape.
        dtype: fp16, bf16 or fp32; fp32 returns `acc` itself, and nothing overflows or underflows.
        full: count subnormals and zeros if `dtype` is fp32.

    Returns:
        The stored tensor, contiguous, and its row with overflow and underflow.
    """
    if dtype == torch.float32:
        row = tensor_stats_cpu(acc, full)
        row[N_OVERFLOW : N_OVERFLOW + 2] = 0
        return acc, row
    acc = acc.contiguous()
    if not cpu.AVAILABLE:
        stored = acc.to(dtype)
        return stored, _rounded_row(tensor_stats_aten(stored, full), acc, stored)
    stored = torch.empty_like(acc, dtype=dtype)
    return stored, cpu.round_with_stats(acc, stored)


def _count(ledger: Ledger, n: int) -> None:
    """Of a sum of `n` bools, which are given back: ATen adds them up as int64."""
    ledger.total(n, copied=8 * n)
    ledger.give(n)


def _count_both(ledger: Ledger, n: int) -> None:
    """How often two masks, which are given back, are both true."""
    both = ledger.take(n)
    ledger.give(2 * n)
    _count(ledger, both)


def stats_scratch(ledger: Ledger, n: int, dtype: torch.dtype, full: bool) -> None:
    """What `tensor_stats_aten` takes of a dense tensor whose sum of squares is in range, and its row, which stays."""
    values, blocks = ledger.take(FLOAT * n if dtype != torch.float32 else 0), n // ATEN_BLOCK
    norms = ledger.take(FLOAT * blocks)
    wide = ledger.take(8 * blocks)
    ledger.give(norms)
    ledger.within(FLOAT if n % ATEN_BLOCK else 0)
    ledger.take(wide)
    ledger.total(blocks)
    ledger.give(wide, wide)
    ends = ledger.take(2 * FLOAT)
    ledger.take(ROW)
    ledger.within(8)
    if counts_small(dtype, full):
        magnitude = ledger.take(FLOAT * n)
        ledger.compare(n, torch.float32)
        ledger.give(magnitude)
        _count(ledger, n)
    ledger.give(values, ends)


def round_scratch(ledger: Ledger, n: int, dtype: torch.dtype, full: bool = True) -> int:
    """What `round_with_stats_cpu` takes; bytes of the stored tensor, which is taken, and so is the row."""
    stored = ledger.take(size(dtype) * n if dtype != torch.float32 else 0)
    if cpu.AVAILABLE:
        ledger.take(ROW)
        ledger.within(statistics(n))
        return stored
    stats_scratch(ledger, n, dtype, full)
    if not stored:
        ledger.within(8)
        return stored
    magnitude = ledger.take(FLOAT * n)
    ledger.compare(n, torch.float32)
    ledger.within(2 * n)
    ledger.give(magnitude)
    magnitude = ledger.take(stored)
    ledger.compare(n, dtype)
    ledger.give(magnitude)
    _count_both(ledger, n)
    ledger.compare(n, torch.float32)
    ledger.compare(n, dtype)
    _count_both(ledger, n)
    return stored


def round_with_stats_reference(acc: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """`round_with_stats_cpu` in plain PyTorch."""
    stored = acc.to(dtype)
    return stored, _rounded_row(tensor_stats_reference(stored), acc, stored)


def _rounded_row(row: torch.Tensor, acc: torch.Tensor, stored: torch.Tensor) -> torch.Tensor:
    row[N_OVERFLOW] = (acc.isfinite() & stored.isinf()).sum()
    row[N_OVERFLOW + 1] = ((acc != 0) & (stored == 0)).sum()
    return row
