"""GELU, the activation of GPT-NeoX's MLP: one read and one write of memory forward, two and one backward.

    y = f(x),  dx = dy f'(x)        f: gelu or gelu_tanh (activation_triton.py)

Everything in fp32, rounded once. transformers writes the tanh variant, NewGELU, as eight operations; on the CPU both
are ATen's.
"""

from torch import Tensor

from ..backend import uses_triton
from ..operators import both_routes
from ..statistics.rounding import new_rows, rounded
from .activation_triton import activation, activation_backward
from .gated import ACTIVATIONS, slope_times


def gelu_reference(x: Tensor, act: str = "gelu") -> Tensor:
    """`gelu` in plain PyTorch."""
    return ACTIVATIONS[act](x.float()).to(x.dtype)


def gelu(x: Tensor, act: str = "gelu", *, slot: Tensor | None = None) -> Tensor:
    """GELU of every value.

    Args:
        x: fp32, fp16 or bf16, of any shape.
        act: `gelu`, by the error function, or `gelu_tanh`.
        slot: float64 [2, 9] for the rows of y, and in backward of dx (rounding.py); None for none.

    Returns:
        The shape and dtype of x.
    """
    return _gelu(x, act, slot)


def _forward(x: Tensor, act: str, slot: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """y; rows [1, 9] or [0, 9]."""
    if uses_triton(x):
        return activation(x, None, act, slot is not None)
    (y,), rows = rounded([ACTIVATIONS[act](x.contiguous().float())], x.dtype, slot is not None)
    return y, rows


def _backward(dy: Tensor, x: Tensor, act: str, counted: bool) -> tuple[Tensor, Tensor]:
    """Rows [1, 9] or [0, 9]; dx."""
    if uses_triton(x):
        rows, dx, _ = activation_backward(dy, x, None, act, counted)
        return rows, dx
    (dx,), rows = rounded([slope_times(dy.contiguous().float(), x.contiguous().float(), act)], x.dtype, counted)
    return rows, dx


def _fake_forward(x, act, slot=None):
    return x.new_empty(x.shape), new_rows(x, 0 if slot is None else 1)


def _fake_backward(dy, x, act, counted):
    return new_rows(x, int(counted)), x.new_empty(x.shape)


_gelu = both_routes("gelu", _forward, _backward, lambda x, act, y, rows: ([x], (act,)), (_fake_forward, _fake_backward))
