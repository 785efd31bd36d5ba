"""Products with a frozen weight on the CPU, in fp32.

    project       X W^T + bias [M, N]  X [M, C], W [N, C]
    project_back  dY W [M, C]          dY [M, N]

A 16-bit weight is widened, a block at a time, and multiplied by torch's matrix library. Where the chip multiplies bf16
in tiles and two 16-bit matrices meet, `cpu/product.c` is faster and widens nothing; its sums differ from the library's
by at most 2^-16 of a term in fp16 and by nothing but the order of additions in bf16.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from .. import cpu
from ..ledger import FLOAT, Ledger, Matrix, planes

WIDEN_BLOCK = 1 << 22
"""Values of a 16-bit W in fp32 at once."""

TILED_ROWS = 32
"""Rows from which tiles are worth the cutting of W."""


def multiplies_in_tiles(x: Tensor) -> bool:
    """Whether a 16-bit `x` [M, C] is multiplied with a 16-bit weight as it is; if not, it is worth widening once."""
    return cpu.TILES and x.shape[0] >= TILED_ROWS and x.dtype != torch.float32


def project(x: Tensor, weight: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """X W^T + bias.

    Args:
        x: [M, C] in fp32, fp16 or bf16.
        weight: [N, C] in one of them.
        bias: [N].
        out: fp32 [M, N], rows dense, written over.
    """
    out = x.new_empty(x.shape[0], weight.shape[0], dtype=torch.float32) if out is None else out
    bias = None if bias is None else bias.float()
    if _in_tiles(x, weight) and cpu.product(x, weight, out, transposed=True, bias=bias):
        return out
    x = x.float()
    for block, w32 in _widened(weight):
        if bias is None:
            torch.mm(x, w32.t(), out=out[:, block])
        else:
            torch.addmm(bias[block], x, w32.t(), out=out[:, block])
    return out


def project_back(dy: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
    """dY W, added to `out` where that is given.

    Args:
        dy: [M, N] in fp32, fp16 or bf16. Beside a 16-bit weight an fp32 dY may count with its upper sixteen bits alone.
        weight: [N, C] in one of them.
        out: fp32 [M, C], rows dense.
    """
    add = out is not None
    out = dy.new_empty(dy.shape[0], weight.shape[1], dtype=torch.float32) if out is None else out
    if _in_tiles(dy, weight) and cpu.product(dy, weight, out, transposed=False, add=add):
        return out
    dy = dy.float()
    for block, w32 in _widened(weight):
        out = out.addmm_(dy[:, block], w32) if add else torch.mm(dy[:, block], w32, out=out)
        add = True
    return out


def _in_tiles(x: Tensor, weight: Tensor) -> bool:
    dense = x.stride(1) == 1 and weight.stride(1) == 1 and weight.numel() > 0
    return takes_tiles(x.shape[0], weight.dtype) and dense


def takes_tiles(n_rows: int, weight_dtype: torch.dtype) -> bool:
    """Whether a product of so many rows with a dense weight is made in tiles."""
    return cpu.TILES and n_rows >= TILED_ROWS and weight_dtype != torch.float32


def product_scratch(ledger: Ledger, x: Matrix, weight: Matrix) -> None:
    """What a product takes beside its result and a bias in fp32: nothing in tiles but their room, if all is finite;
    else X and a block of W in fp32.
    """
    if takes_tiles(x.n_rows, weight.dtype):
        ledger.stays.update(planes())
        return
    step = min(max(1, WIDEN_BLOCK // weight.n_cols), weight.n_rows)
    wide = FLOAT * x.n_rows * x.n_cols if x.dtype != torch.float32 else 0
    ledger.within(wide + (FLOAT * step * weight.n_cols if weight.dtype != torch.float32 else 0))


def _widened(weight: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """W in fp32: all of it if it is fp32, else a block of rows after the other, valid until the next."""
    if weight.dtype == torch.float32:
        yield slice(0, weight.shape[0]), weight
        return
    step = max(1, WIDEN_BLOCK // weight.shape[1])
    buffer = torch.empty(min(step, weight.shape[0]), weight.shape[1])  # a fresh one each time is faulted in
    for start in range(0, weight.shape[0], step):
        block = slice(start, min(start + step, weight.shape[0]))
        yield block, buffer[: block.stop - start].copy_(weight[block])
