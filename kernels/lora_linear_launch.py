"""Launches of the kernels in lora_linear_triton.py, and the order in which forward and backward make them.

Formulas, shapes and rows are those of lora_linear.py. Base products are torch's, that is cuBLAS. On sm_75,
where Triton has no tensor cores, the rank products are cuBLAS's too, in fp32 and by blocks of rows.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from . import lora_linear_triton as kernels
from .backend import has_tensor_cores, is_gpu, n_multiprocessors
from .lora_linear_tiles import ADD_TILE, CAST_BLOCK, TOTAL_BLOCK, WIDEN_TILE, padded_rank, tile_for
from .lora_linear_tiles import aot_variants as aot_variants
from .reduce import N_FIELDS, N_PARTIALS

MAX_PARTIALS = 1024
"""Programs of one launch that leave statistics: one program adds them up."""

GEMM_BLOCK = 1 << 22
"""Values of an fp32 block on sm_75: 16 MiB, so that the whole product never exists in fp32."""


@dataclass
class Site:
    """Partials [P, 8] of one site, and its number of values."""

    partials: Tensor
    n: int


def _partials(like: Tensor, n_programs: int, with_stats: bool) -> Tensor:
    shape = (n_programs if with_stats else 0, N_PARTIALS)
    return torch.empty(shape, dtype=torch.float64, device=like.device)


def precision(x: Tensor) -> str:
    """How `tl.dot` multiplies where the stored side is `x`: see lora_linear_triton.py."""
    return "tf32x3" if x.dtype == torch.float32 else "tf32"


def base_product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x [M, C] weight^T + bias in the dtype of x; fp32 accumulation, one rounding. `bias` may be empty."""
    if not is_gpu(x.device):  # the interpreter: the CPU's 16-bit GEMM is another algorithm
        product = x.float() @ weight.float().t()
        return (product + bias.float() if bias.numel() else product).to(x.dtype)
    weight = weight.to(x.dtype)
    return torch.addmm(bias.to(x.dtype), x, weight.t()) if bias.numel() else x @ weight.t()


def base_grad(dy: Tensor, weight: Tensor, dx: Tensor | None) -> Tensor:
    """dy weight, added to `dx` in place if there is one, with one rounding."""
    if not is_gpu(dy.device):
        product = dy.float() @ weight.float()
        return product.to(dy.dtype) if dx is None else dx.copy_(dx.float() + product)
    return dy @ weight.to(dy.dtype) if dx is None else dx.addmm_(dy, weight.to(dy.dtype))


def _shares(n: int, block: int, wanted: int) -> tuple[int, int]:
    """Splits `n` in about `wanted` parts of whole blocks: how many parts, and the length of one."""
    blocks = max(1, triton.cdiv(n, block))
    per_part = triton.cdiv(blocks, max(1, min(wanted, blocks)))
    return triton.cdiv(blocks, per_part), per_part * block


def down(x: Tensor, a: Tensor, seed: Tensor | None, p: float, with_stats: bool) -> tuple[Tensor, Site]:
    """H = keep(x) a^T, [M, R] fp32, and non-finite counts of x."""
    n_rows, n_cols, rank = *x.shape, a.shape[0]
    if not has_tensor_cores(x.device):
        return _down_by_gemm(x, a, seed, p, with_stats)
    padded = padded_rank(rank)
    tile = tile_for("down", x.dtype, padded)
    row_blocks = max(1, triton.cdiv(n_rows, tile.block_m))
    splits, length = _shares(n_cols, tile.block_c, 2 * n_multiprocessors(x.device) // row_blocks)
    h = torch.empty((splits, n_rows, rank), device=x.device)
    partials = _partials(x, row_blocks * splits, with_stats)
    kernels._down_kernel[(row_blocks, splits, triton.cdiv(rank, padded))](
        x, a, h, x if seed is None else seed, partials, n_rows, n_cols, rank, length // tile.block_c, p,
        DROPOUT=p > 0, STATS=with_stats, PRECISION=precision(x),
        RANK=padded, BLOCK_M=tile.block_m, BLOCK_C=tile.block_c,
        num_warps=tile.num_warps, num_stages=tile.num_stages, enable_fp_fusion=False,
    )  # fmt: skip
    if splits == 1:
        return h[0], Site(partials, x.numel())
    out = torch.empty((n_rows, rank), device=x.device)
    total(h, out, 1.0, False)
    return out, Site(partials, x.numel())


def _down_by_gemm(x: Tensor, a: Tensor, seed: Tensor | None, p: float, with_stats: bool) -> tuple[Tensor, Site]:
    h, found = torch.empty((x.shape[0], a.shape[0]), device=x.device), []
    step = max(1, GEMM_BLOCK // x.shape[1])
    for start in range(0, max(x.shape[0], 1), step):
        rows = slice(start, start + step)
        x32, partials = widen(x[rows], start, seed, p, with_stats)
        found.append(partials)
        h[rows] = x32 @ a.t()
    return h, Site(torch.cat(found), x.numel())


def up(z: Tensor, left: Tensor, right: Tensor, scale: float, seed: Tensor | None, p: float, with_stats: bool) -> Site:
    """z += scale keep(left right^T) in place; left [M, R], right [C, R] any strides. Statistics of z."""
    n_rows, n_cols, rank = *z.shape, left.shape[1]
    if has_tensor_cores(z.device):
        partials = _launch_up(z, left, right, z, 0, scale, seed, p, with_stats, padded_rank(rank))
        return Site(partials, z.numel())
    found = []
    step = max(1, GEMM_BLOCK // n_cols)
    for start in range(0, max(n_rows, 1), step):
        rows = slice(start, start + step)
        delta = left[rows] @ right.t()
        found.append(_launch_up(z[rows], delta, right, delta, start, scale, seed, p, with_stats, 0))
    return Site(torch.cat(found), z.numel())


def _launch_up(
    z: Tensor, left: Tensor, right: Tensor, delta: Tensor, first_row: int,
    scale: float, seed: Tensor | None, p: float, with_stats: bool, padded: int,
) -> Tensor:  # fmt: skip
    n_rows, n_cols = z.shape
    tile = tile_for("up", z.dtype, padded) if padded else ADD_TILE
    row_blocks = max(1, triton.cdiv(n_rows, tile.block_m))
    col_blocks, length = _shares(n_cols, tile.block_c, MAX_PARTIALS // row_blocks)
    partials = _partials(z, row_blocks * col_blocks, with_stats)
    kernels._up_kernel[(row_blocks, col_blocks)](
        z, left, right, delta, z if seed is None else seed, partials, n_rows, n_cols, left.shape[1],
        left.stride(0), right.stride(0), right.stride(1), first_row, length // tile.block_c, scale, p,
        DROPOUT=p > 0, STATS=with_stats, ROUNDED=z.dtype == torch.float32,
        COUNT_SMALL=z.dtype != torch.float32, PRECISION=precision(z),
        RANK=padded, BLOCK_M=tile.block_m, BLOCK_C=tile.block_c,
        num_warps=tile.num_warps, num_stages=tile.num_stages, enable_fp_fusion=False,
    )  # fmt: skip
    return partials


def grad(
    dy: Tensor, h: Tensor, b: Tensor, scale: float, g: Tensor, with_stats: bool
) -> tuple[Tensor, Site, Site, Tensor]:
    """Writes G = scale dy b to `g` [M, r], any row stride. Returns dB, its site, dy's, non-finite H."""
    db = torch.empty_like(b)
    if has_tensor_cores(dy.device):
        g_parts, db_parts, dy_site, h_bad = _launch_grad(dy, h, b, (b.shape[1], 1), None, 0.0, with_stats)
        total(g_parts, g, scale, False)
        return db, total(db_parts, db, scale, with_stats), dy_site, h_bad
    product, found = torch.zeros_like(b), []
    step = max(1, GEMM_BLOCK // dy.shape[1])
    for start in range(0, max(dy.shape[0], 1), step):
        rows = slice(start, start + step)
        dy32, partials = widen(dy[rows], start, None, 0.0, with_stats)
        found.append(partials)
        g[rows] = dy32 @ (b * scale)
        product.addmm_(dy32.t(), h[rows])
    h_bad = h.isfinite().logical_not().sum(dtype=torch.float64).reshape(1)
    return db, total(product[None], db, scale, with_stats), Site(torch.cat(found), dy.numel()), h_bad


def da(
    x: Tensor, g: Tensor, lora_A: Sequence[Tensor], seed: Tensor | None, p: float, with_stats: bool
) -> tuple[list[Tensor], list[Site]]:
    """dA = G^T keep(x) for every projection, and their sites."""
    if has_tensor_cores(x.device):
        parts = _launch_grad(x, g, None, (1, x.shape[1]), seed, p, False)[1]
    else:
        parts = torch.zeros((1, g.shape[1], x.shape[1]), device=x.device)
        step = max(1, GEMM_BLOCK // x.shape[1])
        for start in range(0, x.shape[0], step):
            rows = slice(start, start + step)
            parts[0].addmm_(g[rows].t(), widen(x[rows], start, seed, p, False)[0])
    das = [torch.empty_like(a) for a in lora_A]
    each = parts.split([a.shape[0] for a in lora_A], dim=1)
    return das, [total(part, out, 1.0, with_stats) for part, out in zip(each, das, strict=True)]


def _launch_grad(
    z: Tensor, left: Tensor, right: Tensor | None, outer_strides: tuple[int, int], seed: Tensor | None, p:
        float,
    with_stats: bool,
) -> tuple[Tensor, Tensor, Site, Tensor]:  # fmt: skip
    n_rows, n_cols, rank = *z.shape, left.shape[1]
    padded = padded_rank(rank)
    tile = tile_for("dA" if right is None else "grad", z.dtype, padded)
    strips, chunks = triton.cdiv(n_cols, tile.block_c), triton.cdiv(rank, padded)
    splits, length = _shares(n_rows, tile.block_m, n_multiprocessors(z.device) // strips)
    down_parts = torch.empty((strips if right is not None else 0, n_rows, rank), device=z.device)
    shape = (splits, n_cols, rank) if outer_strides[1] == 1 else (splits, rank, n_cols)
    outer_parts = torch.empty(shape, device=z.device)
    partials = _partials(z, strips * splits, with_stats)
    left_bad = torch.empty(strips * splits * chunks if with_stats else 0, dtype=torch.float64, device=z.device)
    kernels._grad_kernel[(strips, splits, chunks)](
        z, left, z if right is None else right, down_parts, outer_parts, z if seed is None else seed,
        partials, left_bad, n_rows, n_cols, rank, left.stride(0), 0 if right is None else right.stride(0),
        *outer_strides, length, p,
        DROPOUT=p > 0, DOWN=right is not None, STATS=with_stats, COUNT_SMALL=z.dtype != torch.float32,
        PRECISION=precision(z), RANK=padded, BLOCK_M=tile.block_m, BLOCK_C=tile.block_c,
        num_warps=tile.num_warps, num_stages=tile.num_stages, enable_fp_fusion=False,
    )  # fmt: skip
    return down_parts, outer_parts, Site(partials, z.numel()), left_bad


def total(parts: Tensor, out: Tensor, scale: float, with_stats: bool) -> Site:
    """out [rows, width] = scale * sum over parts [S, ...], each as many values in the order of `out`."""
    programs = max(1, triton.cdiv(out.numel(), TOTAL_BLOCK))
    partials = _partials(out, programs, with_stats)
    kernels._total_kernel[(programs,)](
        parts, out, partials, out.numel(), parts.shape[0], parts.stride(0), out.shape[1], out.stride(0),
        scale, STATS=with_stats, BLOCK=TOTAL_BLOCK, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    return Site(partials, out.numel())


def widen(z: Tensor, first_row: int, seed: Tensor | None, p: float, with_stats: bool) -> tuple[Tensor, Tensor]:
    """keep(z) in fp32, and partials of z."""
    n_rows, n_cols = z.shape
    tile = WIDEN_TILE
    grid = (max(1, triton.cdiv(n_rows, tile.block_m)), triton.cdiv(n_cols, tile.block_c))
    out = torch.empty((n_rows, n_cols), device=z.device)
    partials = _partials(z, grid[0] * grid[1], with_stats)
    kernels._widen_kernel[grid](
        z, out, z if seed is None else seed, partials, n_rows, n_cols, first_row, p,
        DROPOUT=p > 0, STATS=with_stats, COUNT_SMALL=z.dtype != torch.float32,
        BLOCK_M=tile.block_m, BLOCK_C=tile.block_c, num_warps=tile.num_warps, enable_fp_fusion=False,
    )  # fmt: skip
    return out, partials


def cast(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Site]:
    """x rounded to a 16-bit dtype, and statistics of the result with overflow and underflow."""
    x = x.contiguous()
    out = torch.empty_like(x, dtype=dtype)
    programs = max(1, triton.cdiv(x.numel(), CAST_BLOCK))
    partials = _partials(x, programs, True)
    kernels._cast_kernel[(programs,)](
        x, out, partials, x.numel(), BLOCK=CAST_BLOCK, num_warps=4, enable_fp_fusion=False
    )
    return out, Site(partials, x.numel())


def forward(
    x: Tensor,
    weights: Iterable[Tensor],
    biases: Sequence[Tensor],
    lora_A: Sequence[Tensor],
    lora_B: Sequence[Tensor],
    seed: Tensor | None,
    scalings: Sequence[float],
    dropout_p: float,
    with_stats: bool,
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Outputs, H, rows."""
    group = len(lora_A)
    rows = torch.empty((1 + group if with_stats else 0, N_FIELDS), dtype=torch.float64, device=x.device)
    h, in_site = down(x, _stacked(lora_A), seed, dropout_p, with_stats)
    ys = []
    each_h = h.split([a.shape[0] for a in lora_A], dim=1)
    for i, weight in enumerate(weights):
        y = base_product(x, weight, biases[i])
        out = up(y, each_h[i], lora_B[i], scalings[i] / (1 - dropout_p), None, 0.0, with_stats)
        ys.append(y)
        if with_stats:
            kernels._forward_rows_kernel[(1,)](
                in_site.partials, out.partials, rows, in_site.partials.shape[0], out.partials.shape[0],
                in_site.n, out.n, i, num_warps=4, enable_fp_fusion=False,
            )  # fmt: skip
    return ys, h, rows


def backward(
    grads: Sequence[Tensor],
    x: Tensor,
    h: Tensor,
    weights: Iterable[Tensor],
    lora_A: Sequence[Tensor],
    lora_B: Sequence[Tensor],
    seed: Tensor | None,
    scalings: Sequence[float],
    dropout_p: float,
    needs_dx: bool,
    with_stats: bool,
) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor]:
    """dX, every dA, every dB, rows."""
    ranks = [a.shape[0] for a in lora_A]
    g = torch.empty_like(h)
    found, dx = [], x.new_empty(0)
    each_g, each_h = g.split(ranks, dim=1), h.split(ranks, dim=1)
    for i, (dy, weight) in enumerate(zip(grads, weights, strict=True)):
        dy = dy.contiguous()
        found.append(grad(dy, each_h[i], lora_B[i], scalings[i] / (1 - dropout_p), each_g[i], with_stats))
        if needs_dx:
            dx = base_grad(dy, weight, dx if i else None)
    das, a_sites = da(x, g, lora_A, seed, dropout_p, with_stats)
    dx_site = None
    if needs_dx:
        dx_site = up(dx, g, _stacked(lora_A).t(), 1.0, seed, dropout_p, with_stats)
    rows = _backward_rows(found, a_sites, dx_site) if with_stats else x.new_empty(0, N_FIELDS, dtype=torch.float64)
    return dx, das, [db for db, *_ in found], rows


def _backward_rows(
    found: Sequence[tuple[Tensor, Site, Site, Tensor]], a_sites: Sequence[Site], dx_site: Site | None
) -> Tensor:
    group = len(found)
    nulls = torch.full((1 + 3 * group, N_FIELDS), float("nan"), dtype=torch.float64, device=found[0][0].device)
    for i, (_, b_site, dy_site, h_bad) in enumerate(found):
        has_dx = dx_site is not None and i == group - 1
        dx = dx_site if dx_site is not None and has_dx else dy_site
        sites = [dy_site, a_sites[i], b_site, dx]
        kernels._backward_rows_kernel[(1,)](
            dy_site.partials, h_bad, a_sites[i].partials, b_site.partials, dx.partials, nulls,
            dy_site.partials.shape[0], h_bad.numel(), *(site.partials.shape[0] for site in sites[1:]),
            *(site.n for site in sites), i, GROUP=group, HAS_DX=has_dx, num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
    return nulls


def _stacked(lora: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(lora)) if len(lora) > 1 else lora[0]
