"""The gated activation of a decoder's MLP: two reads and one write of memory forward, three and two backward.

    y  = f(g) u,  du = dy f(g),  dg = dy u f'(g)        f: silu, gelu or gelu_tanh (activation_triton.py)

Everything in fp32, rounded once. Keeps g and u; PyTorch's own keeps f(g) too.
"""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import cpu
from ..backend import uses_triton
from ..operators import both_routes
from ..statistics.rounding import new_rows, rounded
from .activation_triton import activation, activation_backward

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
}


def gated_reference(g: Tensor, u: Tensor, act: str = "silu") -> Tensor:
    """`gated` in plain PyTorch."""
    return (ACTIVATIONS[act](g.float()) * u.float()).to(g.dtype)


def gated(g: Tensor, u: Tensor, act: str = "silu", *, slot: Tensor | None = None) -> Tensor:
    """f(g) u.

    Args:
        g, u: fp32, fp16 or bf16, of one shape and dtype.
        act: a key of ACTIVATIONS.
        slot: float64 [3, 9] for the rows of y, and in backward of dg and du (rounding.py); None for none.

    Returns:
        Their shape and dtype.
    """
    return _gated(g, u, act, slot)


def _forward(g: Tensor, u: Tensor, act: str, slot: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """y; rows [1, 9] or [0, 9]."""
    if uses_triton(g):
        return activation(g, u, act, slot is not None)
    g, u = g.contiguous(), u.contiguous()
    if cpu.AVAILABLE and act == "silu" and slot is None:
        return cpu.gate(g, u), new_rows(g, 0)
    (y,), rows = rounded([ACTIVATIONS[act](g.float()).mul_(u)], g.dtype, slot is not None)
    return y, rows


def _backward(dy: Tensor, g: Tensor, u: Tensor, act: str, counted: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Rows [2, 9] or [0, 9]; dg, du."""
    if uses_triton(g):
        rows, dg, du = activation_backward(dy, g, u, act, counted)
        assert du is not None
        return rows, dg, du
    dy, g, u = dy.contiguous(), g.contiguous(), u.contiguous()
    if cpu.AVAILABLE and act == "silu" and not counted:
        return new_rows(g, 0), *cpu.gate_backward(dy, g, u)
    g32, dy32 = g.float(), dy.float()
    accs = [slope_times(dy32 * u, g32, act), ACTIVATIONS[act](g32).mul_(dy32)]
    (dg, du), rows = rounded(accs, g.dtype, counted)
    return rows, dg, du


def slope_times(dy: Tensor, g: Tensor, act: str) -> Tensor:
    """dy f'(g), by ATen."""
    if act == "silu":
        return torch.ops.aten.silu_backward(dy, g)
    return torch.ops.aten.gelu_backward(dy, g, approximate="tanh" if act == "gelu_tanh" else "none")


def _fake_forward(g, u, act, slot=None):
    return g.new_empty(g.shape), new_rows(g, 0 if slot is None else 1)


def _fake_backward(dy, g, u, act, counted):
    return new_rows(g, 2 if counted else 0), g.new_empty(g.shape), g.new_empty(g.shape)


_gated = both_routes(
    "gated", _forward, _backward, lambda g, u, act, y, rows: ([g, u], (act,)), (_fake_forward, _fake_backward)
)
