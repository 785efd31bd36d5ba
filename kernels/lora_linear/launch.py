"""Launches of the kernels in kernels.py, and the order in which forward and backward make them.

Formulas, shapes and rows are those of __init__.py. Base products are torch's, that is cuBLAS. A launch
costs the host the same however little it computes, so a group of up to four projections makes seven in all:

    forward     down, up of every Y
    backward    grad of every dY, total of G, grad of X for dA, total of every dA and dB, up of dX

Those of backward but the last are in read/. Rows of statistics, and the squares of examples, wait for a launch of all
together (pending_rows.py). The launches are the same on every chip.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..backend import cdiv, n_multiprocessors
from ..frozen.base_product import base_grad, base_product
from ..launcher import launch
from ..statistics.pending_rows import (
    AFTER_PRODUCT,
    NOTHING,
    NULL,
    ONLY_COUNTS,
    Partials,
    PendingRows,
    Rows,
    regions,
    room,
)
from . import kernels
from .group import NO_DROPOUT, Dropout, Factor, Group
from .projections import MAX_GROUP, four
from .read.launches import Sides, add_squares, grad, read, total_gradients
from .shapes import down_shape, up_shape
from .tiles import CAST_BLOCK, precision
from .tiles import aot_variants as aot_variants


def down(x: Tensor, a: Tensor, dropout: Dropout, with_stats: bool) -> tuple[Tensor, Tensor]:
    """H = keep(x) a^T in parts [S, M, R] fp32, and partials: non-finite counts of x."""
    seed, p = dropout
    n_rows, n_cols, rank = *x.shape, a.shape[0]
    shape = down_shape(n_rows, n_cols, rank, precision(x), n_multiprocessors(x.device))
    tile = shape.tile
    h = x.new_empty((shape.splits, n_rows, rank), dtype=torch.float32)
    found = room(h, shape.n_programs, with_stats)
    launch(
        kernels._down_kernel, shape.grid, (x, a, h, x if seed is None else seed, found), (n_cols, rank),
        (n_rows, shape.blocks, p), (p > 0, with_stats, precision(x), shape.padded, tile.block_m, tile.block_c),
        num_warps=tile.num_warps, num_stages=tile.num_stages, enable_fp_fusion=False,
    )  # fmt: skip
    return h, found


def up(
    zs: Sequence[Tensor], left: Tensor, right: Factor, scales: Sequence[float], dropout: Dropout, with_stats: bool
) -> tuple[Tensor, list[Partials]]:
    """z_i += s_i keep(l_i r_i) in place, of up to four projections.

    Args:
        zs: [M, c_i], contiguous.
        left: fp32 [parts, M, sum of k_i], whose parts are added; if it is one, it may be a slice of columns.
        right: contiguous.

    Returns:
        left [M, sum of k_i], and where the statistics of each z_i are.
    """
    z, (n_parts, n_rows) = zs[0], left.shape[:2]
    (rights, across), (seed, p) = right, dropout
    side = 1 if across else 0
    ranks = tuple([matrix.shape[side] for matrix in rights])
    shape = up_shape(n_rows, tuple([z.shape[1] for z in zs]), ranks, precision(z))
    tile = shape.tile
    found = room(left, shape.grid[0] * shape.grid[1], with_stats)
    total = left.new_empty(left.shape[1:]) if n_parts > 1 else left[0]
    is_wide = z.dtype == torch.float32
    launch(
        kernels._up_kernel, shape.grid,
        (*four(zs), *four(rights), left, total, z if seed is None else seed, found),
        (*shape.sizes, left.stride(1)), (n_rows, n_parts, shape.tiles, *four(scales), p),
        (len(zs), across, shape.chunked, p > 0, with_stats, is_wide, not is_wide, precision(z), shape.padded,
         tile.block_m, tile.block_c),
        num_warps=tile.num_warps, num_stages=tile.num_stages, enable_fp_fusion=False,
    )  # fmt: skip
    return total, regions(found, shape.n_programs, with_stats)


def cast(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Partials]:
    """x rounded to a 16-bit dtype, and statistics of the result with overflow and underflow."""
    x = x.contiguous()
    out = torch.empty_like(x, dtype=dtype)
    programs = max(1, cdiv(x.numel(), CAST_BLOCK))
    found = room(x, programs, True)
    launch(
        kernels._cast_kernel, (programs, 1, 1), (x, out, found), (), (x.numel(),),
        (x.shape[-1] % 16 == 0, CAST_BLOCK), num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    return out, regions(found, [programs], True)[0]


def _chunks(n: int) -> Iterator[slice]:
    return (slice(start, min(start + MAX_GROUP, n)) for start in range(0, n, MAX_GROUP))


def _stacked(lora: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(lora)) if len(lora) > 1 else lora[0].contiguous()


def forward(x: Tensor, group: Group, rows: Rows | None) -> tuple[list[Tensor], Tensor]:
    """Outputs and H. `rows` gets those of in and of each out."""
    lora_A, with_stats = group.lora_A, rows is not None
    h_parts, in_found = down(x, _stacked(lora_A), group.dropout, with_stats)
    ys = [base_product(x, weight, bias) for weight, bias in zip(group.dense(x.dtype), group.biases, strict=True)]
    if len(ys) > MAX_GROUP:  # several launches read slices of it, and would leave slices
        h_parts = h_parts.sum(0, keepdim=True)
    scales, right, sites, h = group.factors, [b.contiguous() for b in group.lora_B], [], h_parts[0]
    first = 0
    for some in _chunks(len(ys)):
        end = first + sum(a.shape[0] for a in lora_A[some])
        left = h_parts if len(ys) <= MAX_GROUP else h_parts[..., first:end]
        total, found = up(ys[some], left, Factor(right[some], across=True), scales[some], NO_DROPOUT, with_stats)
        h = total if len(ys) <= MAX_GROUP else h
        sites += found
        first = end
    if rows is not None:
        (inputs,) = regions(in_found, [in_found.shape[0]], True)
        rows.pending.add(rows, 0, inputs, x.numel(), ONLY_COUNTS)
        for i, (y, site) in enumerate(zip(ys, sites, strict=True)):
            rows.pending.add(rows, 1 + i, site, y.numel(), AFTER_PRODUCT, (inputs, NOTHING))
    return ys, h


def backward(
    grads: Sequence[Tensor], x: Tensor, h: Tensor, group: Group, needs_dx: bool, rows: Rows | None
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """dX, every dA, every dB. `rows` gets those of grad_out, grad_in, lora_A.grad and lora_B.grad."""
    lora_A, dropout, with_stats = group.lora_A, group.dropout, rows is not None
    grads = [dy.contiguous() for dy in grads]
    scales, right = group.factors, [b.contiguous() for b in group.lora_B]
    g, dx = torch.empty_like(h), x.new_empty(0)
    if needs_dx:
        weights = group.dense(x.dtype)
        for i, dy in enumerate(grads):
            weight = next(weights)  # zip would hold on to those before
            dx = base_grad(dy, weight, dx if i else None)
    dAs, dBs, passes, of_gradients, of_examples, first = [], [], [], [], [], 0
    for some in _chunks(len(grads)):
        a, b = lora_A[some], right[some]
        ranks = tuple([matrix.shape[0] for matrix in a])
        columns = slice(first, first + sum(ranks))
        first = columns.stop
        # G's parts are as wide as the rows of what is read beside them
        own_h = h if len(grads) <= MAX_GROUP else h[:, columns].contiguous()
        sides = Sides(own_h, b, ranks, scales[some])
        found = grad(grads[some], sides, g[:, columns], with_stats, group.examples)
        da = read([x], Sides(g[:, columns], None, ranks, [1.0]), dropout, False, group.examples)
        both = total_gradients(da, found, a, b, with_stats)
        dAs += both.values[: len(ranks)]
        dBs += both.values[len(ranks) :]
        passes.append((found.sites, found.bad))
        of_gradients.append(both.sites)
        of_examples.append((da.pieces, found.pieces, both.cut))
    dx_site = None
    if needs_dx:
        dx_site = up([dx], g[None], Factor([_stacked(lora_A)], across=False), [1.0], dropout, with_stats)[1]
    if rows is not None:
        _add_rows(rows, passes, of_gradients, dx_site, [*grads, dx], [*dAs, *dBs])
    if group.examples is not None and group.examples.squares is not None:
        _add_squares(rows, group.examples.squares, of_examples)
    return dx, dAs, dBs


def _add_squares(rows: Rows | None, into: Tensor, found: Sequence[tuple]) -> None:
    pending = PendingRows() if rows is None else rows.pending
    for i, (of_A, of_B, cut) in enumerate(found):
        add_squares(pending, (into, i * MAX_GROUP), (of_A, of_B), cut)
    if rows is None:
        pending.flush()


def _add_rows(
    rows: Rows,
    passes: Sequence[Sequence[list[Partials]]],
    of_gradients: Sequence[Sequence[Partials]],
    dx_site: list[Partials] | None,
    activations: Sequence[Tensor],
    gradients: Sequence[Tensor],
) -> None:
    """Rows in the order of __init__.py's slot, from grad_out on."""
    add = rows.pending.add
    group = len(activations) - 1
    i = 0
    for found, sites in zip(passes, of_gradients, strict=True):
        n = len(found[0])
        for at, (site, bad) in enumerate(zip(*found, strict=True)):
            add(rows, i, site, activations[i].numel())
            add(rows, group + 1 + i, sites[at], gradients[i].numel(), AFTER_PRODUCT, (site, bad))
            add(rows, 2 * group + 1 + i, sites[n + at], gradients[group + i].numel(), AFTER_PRODUCT, (site, bad))
            i += 1
    if dx_site is None:
        add(rows, group, NOTHING, 0, NULL)
        return
    ranges = [Partials(dy[0].buffer, dy[0].address, sum(site.count for site in dy)) for dy, _ in passes]
    if len(ranges) > 2:
        joined = torch.cat([found.buffer[: found.count] for found in ranges])
        ranges = regions(joined, [joined.shape[0]], True)
    add(
        rows,
        group,
        dx_site[0],
        activations[-1].numel(),
        AFTER_PRODUCT,
        (ranges[0], ranges[-1] if len(ranges) > 1 else NOTHING),
    )
