"""Triton kernels of activations, gated or not, forward and backward: one pass over flat tensors, one launch each.

    y  = f(g) u        du = dy f(g)        dg = dy u f'(g)        u = 1 where there is none

    silu       f = g s(g)                  f' = s + f (1 - s)                       s(z) = 1 / (1 + e^-z)
    gelu       f = g P(g)                  f' = P + g e^(-g^2 / 2) / sqrt(2 pi)     P = (1 + erf(g / sqrt 2)) / 2
    gelu_tanh  f = g s(z)                  f' = s + f (1 - s) dz/dg                 z = sqrt(8 / pi) (g + 0.044715 g^3)

since (1 + tanh(z / 2)) / 2 is s(z). Everything in fp32, rounded once. Arguments: gated.py and gelu.py.
"""

import torch
import triton.language as tl
from torch import Tensor

from ..backend import AotVariant, cdiv, jit, on_device
from ..statistics.rounding import new_partials, rows_of, share
from ..statistics.tile_stats import add_partials, no_partials, tile_partials, write_partials

BLOCK = 2048
"""Values at a time: 8 per thread; with 16, backward without a gate spills where it counts on sm_75."""

NUM_WARPS = 8

_SQRT_HALF = tl.constexpr(0.7071067811865476)
_DENSITY = tl.constexpr(0.3989422804014327)  # 1 / sqrt(2 pi)
_SLOPE = tl.constexpr(1.5957691216057308)  # sqrt(8 / pi)
_CUBE = tl.constexpr(0.044715)


@jit
def _share_of(g, ACT: tl.constexpr):
    """f(g) / g."""
    if ACT == "gelu":
        return 0.5 * (1.0 + tl.erf(g * _SQRT_HALF))
    elif ACT == "gelu_tanh":
        return 1.0 / (1.0 + tl.exp(-(g * _SLOPE) * (1.0 + g * g * _CUBE)))
    else:
        return 1.0 / (1.0 + tl.exp(-g))


@jit
def _slope(g, share, ACT: tl.constexpr):
    """f'(g), `share` being f(g) / g."""
    if ACT == "gelu":
        return share + g * tl.exp(-0.5 * g * g) * _DENSITY
    elif ACT == "gelu_tanh":
        return share + g * share * (1.0 - share) * _SLOPE * (1.0 + g * g * (3.0 * _CUBE))
    else:
        return share + g * share * (1.0 - share)


@jit
def _read(ptr, offsets, mask):
    return tl.load(ptr + offsets, mask=mask, other=0.0).to(tl.float32)


@jit
def _count(total, acc, stored, mask):
    return add_partials(total, tile_partials(acc, stored, mask, True, stored.dtype != tl.float32))


@jit(do_not_specialize=["n_rows", "tiles_per_program"])
def _activation_kernel(
    g_ptr, u_ptr, y_ptr, partials_ptr, n_rows, n_cols, tiles_per_program, ACT: tl.constexpr, BLOCK: tl.constexpr
):
    """Of n_rows x n_cols values: the width, a property of the model, lets the compiler see where rows are aligned."""
    program = tl.program_id(0).to(tl.int64)
    if partials_ptr is not None:
        total = no_partials(True, y_ptr.dtype.element_ty != tl.float32)
    for tile in range(tiles_per_program):
        offsets = (program * tiles_per_program + tile) * BLOCK + tl.arange(0, BLOCK)
        mask = offsets < tl.cast(n_rows, tl.int64) * n_cols
        g = _read(g_ptr, offsets, mask)
        acc = g * _share_of(g, ACT)
        if u_ptr is not None:
            acc *= _read(u_ptr, offsets, mask)
        y = acc.to(y_ptr.dtype.element_ty)
        tl.store(y_ptr + offsets, y, mask=mask)
        if partials_ptr is not None:
            total = _count(total, acc, y, mask)
    if partials_ptr is not None:
        write_partials(partials_ptr, program, total)


@jit(do_not_specialize=["n_rows", "tiles_per_program"])
def _activation_backward_kernel(
    dy_ptr, g_ptr, u_ptr, dg_ptr, du_ptr, partials_ptr,
    n_rows, n_cols, tiles_per_program, ACT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Partials of dg, and after them those of du."""
    program = tl.program_id(0).to(tl.int64)
    if partials_ptr is not None:
        total = no_partials(True, dg_ptr.dtype.element_ty != tl.float32)
        total_u = no_partials(True, dg_ptr.dtype.element_ty != tl.float32)
    for tile in range(tiles_per_program):
        offsets = (program * tiles_per_program + tile) * BLOCK + tl.arange(0, BLOCK)
        mask = offsets < tl.cast(n_rows, tl.int64) * n_cols
        g = _read(g_ptr, offsets, mask)
        dy = _read(dy_ptr, offsets, mask)
        share = _share_of(g, ACT)
        acc = dy * _slope(g, share, ACT)
        if u_ptr is not None:
            acc *= _read(u_ptr, offsets, mask)
            acc_u = dy * (g * share)
            du = acc_u.to(du_ptr.dtype.element_ty)
            tl.store(du_ptr + offsets, du, mask=mask)
            if partials_ptr is not None:
                total_u = _count(total_u, acc_u, du, mask)
        dg = acc.to(dg_ptr.dtype.element_ty)
        tl.store(dg_ptr + offsets, dg, mask=mask)
        if partials_ptr is not None:
            total = _count(total, acc, dg, mask)
    if partials_ptr is not None:
        write_partials(partials_ptr, program, total)
        if u_ptr is not None:
            write_partials(partials_ptr, program + tl.num_programs(0), total_u)


def activation(g: Tensor, u: Tensor | None, act: str, counted: bool) -> tuple[Tensor, Tensor]:
    """y in the shape and dtype of g, and rows [1, 9] or [0, 9]."""
    g, u = g.contiguous(), None if u is None else u.contiguous()
    y = torch.empty_like(g)
    programs, tiles_per_program = share(cdiv(g.numel(), BLOCK), counted)
    partials = new_partials(g, 1, programs, counted)
    if g.numel():
        with on_device(g):
            n_cols = g.shape[-1] if g.ndim else 1
            _activation_kernel[(programs,)](
                g, u, y, partials, g.numel() // n_cols, n_cols, tiles_per_program,
                ACT=act, BLOCK=BLOCK, num_warps=NUM_WARPS, enable_fp_fusion=False,
            )  # fmt: skip
    return y, rows_of(y, partials)


def activation_backward(
    dy: Tensor, g: Tensor, u: Tensor | None, act: str, counted: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Rows of the gradients or [0, 9], dg, and du if there is a u."""
    dy, g, u = dy.contiguous(), g.contiguous(), None if u is None else u.contiguous()
    dg, du = torch.empty_like(g), None if u is None else torch.empty_like(g)
    programs, tiles_per_program = share(cdiv(g.numel(), BLOCK), counted)
    partials = new_partials(g, 1 if u is None else 2, programs, counted)
    if g.numel():
        with on_device(g):
            n_cols = g.shape[-1] if g.ndim else 1
            _activation_backward_kernel[(programs,)](
                dy, g, u, dg, du, partials, g.numel() // n_cols, n_cols, tiles_per_program,
                ACT=act, BLOCK=BLOCK, num_warps=NUM_WARPS, enable_fp_fusion=False,
            )  # fmt: skip
    return rows_of(dg, partials), dg, du


def aot_variants() -> list[AotVariant]:
    """What `benchmarks/compile_kernels.py` compiles ahead of time; in fp16 they count."""
    variants = []
    for name, act, gated, dtypes in (
        ("silu gate", "silu", True, ("fp16", "bf16", "fp32")),
        ("gelu tanh gate", "gelu_tanh", True, ("fp16",)),
        ("gelu", "gelu", False, ("fp16", "bf16", "fp32")),
    ):
        for dtype in dtypes:
            counts = {"partials_ptr": "*fp64"} if dtype == "fp16" else {}
            sizes = {"n_rows": "i32", "n_cols": "i32", "tiles_per_program": "i32"}
            for title, kernel, pointers in (
                (name, _activation_kernel, ("g_ptr", "u_ptr", "y_ptr")),
                (f"{name} backward", _activation_backward_kernel, ("dy_ptr", "g_ptr", "u_ptr", "dg_ptr", "du_ptr")),
            ):
                absent = {} if gated else {"u_ptr": None} | ({"du_ptr": None} if "du_ptr" in pointers else {})
                signature = {pointer: f"*{dtype}" for pointer in pointers if pointer not in absent} | counts
                constants = {"ACT": act, "BLOCK": BLOCK, **absent, **({} if counts else {"partials_ptr": None})}
                variants.append(
                    AotVariant(
                        f"{title} {dtype}", kernel, signature | sizes, constants, (*signature, "n_cols"),
                        num_warps=NUM_WARPS,
                    )
                )  # fmt: skip
    return variants
