"""The smokes of norms, activations and rotary: forward and gradients beside the same formulas in float64.

A 16-bit result is rounded where transformers rounds: at most three times by half a unit in its last place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from lora_train.kernels.elementwise.gated import gated
from lora_train.kernels.elementwise.gelu import gelu
from lora_train.kernels.elementwise.layer_norm import layer_norm
from lora_train.kernels.elementwise.rms_norm import rms_norm
from lora_train.kernels.elementwise.rotary import rotary
from torch import Tensor
from torch.nn import functional

from ...device import DEVICE

UNIT = {torch.float32: 2e-6, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
ROUNDINGS = 3
EPS = 1e-5

Work = Callable[..., Tensor]


def cases(small: bool) -> list[tuple[str, Callable[[], str]]]:
    """Name -> what is wrong, or nothing."""
    found: list[tuple[str, Callable[[], str]]] = []
    for m, n in ((1, 64), (17, 48)) if small else ((1, 4096), (17, 250), (1025, 4096), (274, 14336)):
        for dtype in UNIT:
            name = f"{m} x {n} {str(dtype)[6:]}"
            x, u, w, b = (values(i, dtype, *shape) for i, shape in enumerate(((m, n), (m, n), (n,), (n,))))
            found += [
                (f"rms_norm {name}", lambda x=x, w=w: off(lambda t: rms_norm(t, w, EPS), [x], lambda t: rms(t, w))),
                (f"layer_norm {name}", lambda x=x, w=w, b=b: normed(x, w, b)),
                (f"gated {name}", lambda x=x, u=u: off(gated, [x, u], lambda g, u: functional.silu(g) * u)),
                (f"gelu {name}", lambda x=x: off(gelu, [x], functional.gelu)),
            ]
    for heads, length, width in ((2, 5, 16),) if small else ((8, 1, 128), (32, 273, 128)):
        for dtype in UNIT:
            name = f"rotary {heads} x {length} {str(dtype)[6:]}"
            found.append((name, lambda shape=(1, heads, length, width), dtype=dtype: turned(shape, dtype)))
    return found


def values(seed: int, dtype: torch.dtype, *shape: int) -> Tensor:
    """Random values of size one."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x * weight.double() * (x.square().mean(-1, keepdim=True) + EPS).rsqrt()


def normed(x: Tensor, w: Tensor, b: Tensor) -> str:
    def wide(t: Tensor) -> Tensor:
        return functional.layer_norm(t, w.shape, w.double(), b.double(), EPS)

    return off(lambda t: layer_norm(t, w, b, EPS), [x], wide)


def turned(shape: tuple[int, ...], dtype: torch.dtype) -> str:
    """x [1, heads, length, width], angles [1, length, width]."""
    x, angle = values(1, dtype, *shape), values(2, torch.float32, 1, shape[2], shape[3] // 2).repeat(1, 1, 2)
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)

    def wide(t: Tensor) -> Tensor:
        low, high = t.chunk(2, dim=-1)
        return t * cos.unsqueeze(1).double() + torch.cat((-high, low), dim=-1) * sin.unsqueeze(1).double()

    return off(lambda t: rotary(t, cos, sin), [x], wide)


def off(work: Work, inputs: Sequence[Tensor], wide: Work) -> str:
    """The first of the result and the gradients of its inputs that is too far from float64."""
    own, other = [x.clone().requires_grad_() for x in inputs], [x.double().requires_grad_() for x in inputs]
    y, wanted = work(*own), wide(*other)
    grad = values(3, y.dtype, *y.shape)
    found = [y, *torch.autograd.grad(y, own, grad)]
    expected = [wanted, *torch.autograd.grad(wanted, other, grad.double())]
    tolerance = ROUNDINGS * UNIT[inputs[0].dtype]
    for index, (one, two) in enumerate(zip(found, expected, strict=True)):
        error = float((one.detach().double() - two.detach()).norm() / two.detach().norm())
        if not error <= tolerance:
            return f"{f'gradient {index}' if index else 'result'} is off by {error:.2e}, more than {tolerance:.2e}"
    return ""
