"""The CPU's one-pass statistics: `stats.c` where setup.py could compile it, else None and ATen serves.

Row layout and meaning are those of `tensor_stats.py`; this file only turns tensors into addresses.
"""

import torch

try:
    from . import _stats  # type: ignore[reportAttributeAccessIssue]
except ImportError:  # no compiler when the package was installed
    _stats = None

AVAILABLE = _stats is not None
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # as in stats.c


def stats(x: torch.Tensor, count_small: bool, portable: bool = False) -> torch.Tensor:
    """Row of a contiguous fp32, fp16 or bf16 tensor, overflow and underflow null. `portable`: same bits."""
    assert _stats is not None
    row = torch.empty(9, dtype=torch.float64)
    threads = torch.get_num_threads()
    _stats.stats(x.data_ptr(), x.numel(), DTYPES[x.dtype], count_small, 0, row.data_ptr(), threads, portable)
    return row


def round_with_stats(acc: torch.Tensor, stored: torch.Tensor, portable: bool = False) -> torch.Tensor:
    """Rounds a contiguous fp32 tensor into `stored` (fp16 or bf16, contiguous); the row of `stored`."""
    assert _stats is not None
    row = torch.empty(9, dtype=torch.float64)
    _stats.stats(
        acc.data_ptr(),
        acc.numel(),
        DTYPES[stored.dtype],
        True,
        stored.data_ptr(),
        row.data_ptr(),
        torch.get_num_threads(),
        portable,
    )
    if not acc.numel():  # no values have no address, and stats.c takes no address for nothing to round into
        row[4:6] = 0
    return row


def exponents(x: torch.Tensor) -> torch.Tensor:
    """Counts of the 256 fp32 exponent fields of a contiguous tensor, int64."""
    assert _stats is not None
    counts = torch.empty(256, dtype=torch.int64)
    _stats.exponents(x.data_ptr(), x.numel(), DTYPES[x.dtype], counts.data_ptr())
    return counts
