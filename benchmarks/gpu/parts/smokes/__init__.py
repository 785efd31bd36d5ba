"""Every launcher against float64 on the device at hand; outputs begin as NaN, so that what is not written shows.

    lora_linear      forward, backward and every row of statistics: M rows from 1 on, groups, dropout, three dtypes, and
                     the products in fp32 of chips without tensor cores; and where examples are known, the square of
                     each one's gradients, and that asking changes no bit
    the others       statistics, histogram, loss, NF4 decode (passes.py), norms, activations, rotary
                     (elementwise.py)

||a - b|| <= tolerance ||b||: a 16-bit result is rounded once or twice by half a unit in its last place, TF32 operands
by 2^-11 each; the roundings of a float32 sum of n terms walk at random, to 2^-24 sqrt(n), at least 2e-6. Without a GPU
Triton's interpreter runs the same launchers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any
from unittest import mock

import torch
from lora_train.kernels.backend import triton_on_cpu
from lora_train.kernels.lora_linear import Examples, lora_linear
from lora_train.kernels.lora_linear import tiles as lora_linear_tiles
from lora_train.kernels.lora_linear.group import Dropout, Group
from lora_train.kernels.lora_linear.reference import Watched, lora_linear_reference, slot_reference
from lora_train.kernels.statistics.reduce import FIELDS
from torch import Tensor

from ...context import Context
from ...device import DEVICE, HAS_CUDA, synchronize
from . import elementwise, passes

ROUNDING = {torch.float32: 2e-6, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
TF32 = 2.0**-11
MOST_EXAMPLES = 16
"""Of a layer, whose squares are looked at."""
FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16


@dataclass(frozen=True)
class Layer:
    """M tokens through a group of projections of K in and `ns` out; `old`: as on a chip without tensor cores;
    `examples`: how many tokens each has, if that is known.
    """

    m: int
    k: int
    ns: tuple[int, ...]
    r: int = 8
    dtype: torch.dtype = FP16
    p: float = 0.0
    bias: bool = False
    old: bool = False
    examples: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        words = (f"p={self.p}" * (self.p > 0), "bias" * self.bias, "sm_75" * self.old)
        words += (f"examples {'+'.join(map(str, self.examples[:4]))}.." * bool(self.examples),)
        shape = f"M={self.m} K={self.k} N={'+'.join(map(str, self.ns))} r={self.r}"
        return " ".join(filter(None, ("lora_linear", str(self.dtype)[6:], shape, *words)))


def layers(small: bool) -> list[Layer]:
    """What is tried; the small list is for the interpreter and the sanitizer, which take a thousand times as long."""
    if small:
        return [
            *(Layer(m, 48, (80,), dtype=dtype) for m in (1, 2, 17) for dtype in (FP16, FP32)),
            Layer(17, 64, (64, 32, 32), r=4, dtype=BF16, p=0.25, bias=True),
            Layer(33, 48, (64,), r=33),
            Layer(33, 48, (64,), old=True),
            Layer(1, 48, (64,), r=1, old=True),
            Layer(49, 48, (80, 32), r=4, p=0.25, old=True, examples=(30, 1, 0, 18)),
            Layer(1, 1, (1,), r=1),
            *(Layer(49, 48, (80, 32), r=4, dtype=d, p=0.25, examples=(30, 1, 0, 18)) for d in (FP16, FP32)),
        ]
    return [
        *(Layer(m, 256, (512,), dtype=d) for m in (1, 2, 17, 273, 274, 820, 1025) for d in (FP16, BF16, FP32)),
        *(Layer(m, 256, (512, 128, 128), 16, d, 0.05, True) for m in (1, 274, 2048) for d in (FP16, BF16, FP32)),
        *(Layer(1025, 250, (530,), r, d) for r in (1, 33, 64, 100, 256) for d in (FP16, FP32)),
        *(Layer(m, 512, (15360,), old=True) for m in (1, 274, 2048)),
        *(Layer(1025, 250, (530,), r, d, old=True) for r in (33, 64, 100) for d in (FP16, FP32)),
        Layer(2048, 4096, (4096, 1024, 1024), 16, p=0.05, old=True, examples=(20, 400, 74, 345, 128, 1081)),
        *(Layer(m, 256, (512, 128, 128), 16, d, 0.05, True, True) for m in (1, 274) for d in (FP16, FP32)),
        Layer(2048, 4096, (14336,), 16),
        Layer(2048, 14336, (4096,), 16, BF16),
        Layer(1, 1, (1,), r=1),
        *(Layer(2048, 4096, (4096, 1024, 1024), r, d, 0.05, examples=e)
          for r, d in ((16, FP16), (64, BF16), (32, FP32)) for e in ((1024,) * 2, (20, 400, 74, 345, 128, 1081))),
        Layer(512, 1024, (1024,), 8, examples=(1,) * 512),
        Layer(2048, 256, (512,), 100, examples=(16,) * 128),
        Layer(2048, 5120, (15360,), 16, p=0.05, examples=(2048,)),
    ]  # fmt: skip


def run(context: Context) -> str:
    """Tries all of them."""
    n = attempt(context.dry, context.check)
    context.number(cases=n)
    return f"{n} cases, {len(context.told['failures'])} wrong"


def attempt(small: bool, check: Callable[[bool, str], None]) -> int:
    """Tries every case and goes on after a wrong one. Returns how many there were."""
    cases: list[tuple[str, Callable[[], str]]] = [
        (layer.name, lambda layer=layer: wrong(layer)) for layer in layers(small)
    ]
    cases += passes.cases(small) + elementwise.cases(small)
    for name, case in cases:
        with poisoned(), contextlib.nullcontext() if HAS_CUDA else triton_on_cpu():
            try:
                found = case()
                synchronize()
            except Exception as error:
                found = f"{type(error).__name__}: {error}"
                if HAS_CUDA and "CUDA" in found:  # nothing works on this device any more
                    check(False, f"{name}: {found}")
                    break
        check(not found, f"{name}{': ' if found else ''}{found}")
    return len(cases)


def launch() -> None:
    """Launches the same kernels at small sizes, and looks at no result: for a driver that computes nothing.

    Triton's variants depend on dtypes, on r, and on which sizes are multiples of 16, not on how large they are.
    """
    for layer in layers(False):
        n = layer.ns[0] if layer.ns[0] < 1024 else 512
        m, examples = min(layer.m, 33), (20, 13) if layer.examples else ()
        Inputs(replace(layer, m=m, k=min(layer.k, 512), ns=(n, *layer.ns[1:]), examples=examples)).results()
    for _, case in passes.cases(True) + elementwise.cases(True):
        case()


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """torch.empty() holds NaN, or the largest integer."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.empty(3, device=DEVICE).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def chip_of(layer: Layer) -> Iterator[None]:
    """A chip without tensor cores if the layer wants one."""
    without = mock.patch.object(lora_linear_tiles, "has_tensor_cores", return_value=False)
    with without if layer.old else contextlib.nullcontext():
        yield


class Inputs:
    """Random tensors of a layer; `results` launches its forward and backward."""

    def __init__(self, layer: Layer):
        self._generator = torch.Generator(DEVICE).manual_seed(layer.m + layer.k)
        self.layer = layer
        self.x = self._randn(layer.m, layer.k).to(layer.dtype)
        self.weights = [(self._randn(n, layer.k) / 8).to(layer.dtype) for n in layer.ns]
        self.lora_A = [self._randn(layer.r, layer.k) / 8 for _ in layer.ns]
        self.lora_B = [self._randn(n, layer.r) / 8 for n in layer.ns]
        self.biases = [self._randn(n).to(layer.dtype) if layer.bias else None for n in layer.ns]
        self.grads = [self._randn(layer.m, n).to(layer.dtype) for n in layer.ns]
        self.scalings = [2.0 / (i + 1) for i in range(len(layer.ns))]
        self.seed = torch.tensor([7], device=DEVICE) if layer.p else None
        self.squares = torch.full((len(layer.examples), 2 * len(layer.ns)), -1.0, dtype=torch.float64, device=DEVICE)
        self.slot = torch.full((2 + 4 * len(layer.ns), len(FIELDS)), -1.0, dtype=torch.float64, device=DEVICE)

    def _randn(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._generator, device=DEVICE)

    def examples(self, asked: bool) -> Examples | None:
        starts = (0, *accumulate(self.layer.examples))
        return Examples(starts, self.squares if asked else None) if self.layer.examples else None

    def results(self, asked: bool = True) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
        """Y of each projection; dX, every dA, every dB; the dropout mask [M, K]. `asked`: for the squares, too."""
        layer, leaves = self.layer, [t.requires_grad_() for t in (self.x, *self.lora_A, *self.lora_B)]
        how: Any = {"biases": self.biases, "dropout_p": layer.p, "seed": self.seed, "slot": self.slot}
        how["examples"] = self.examples(asked)
        with chip_of(layer):
            ys = lora_linear(self.x, self.weights, self.lora_A, self.lora_B, self.scalings, **how)
            found = torch.autograd.grad(ys, leaves, self.grads)
            keep = None if self.seed is None else drawn_mask(layer, self.seed)
        return [y.detach() for y in ys], list(found), keep

    def expected(self, keep: Tensor | None) -> list[Tensor]:
        """The same from float64: outputs, then gradients."""
        x, *lora = [t.detach().double().requires_grad_() for t in (self.x, *self.lora_A, *self.lora_B)]
        lora_A, lora_B = lora[: len(lora) // 2], lora[len(lora) // 2 :]
        weights = [weight.double() for weight in self.weights]
        biases = [None if bias is None else bias.double() for bias in self.biases]
        group = Group(weights, biases, lora_A, lora_B, self.scalings, Dropout(None, self.layer.p))
        ys = lora_linear_reference(x, group, keep)
        return [*(y.detach() for y in ys), *torch.autograd.grad(ys, [x, *lora], [g.double() for g in self.grads])]

    def squares_of(self, own: slice, keep: Tensor | None, absolute: bool) -> Tensor:
        """|dA_i|^2 and |dB_i|^2 of some tokens in float64, or those of the sums of absolute values."""

        def wide(x: Tensor) -> Tensor:
            return x.detach().double().abs() if absolute else x.detach().double()

        x, found_A, found_B = wide(self.x[own]), [], []
        x = x if keep is None else torch.where(keep[own], x, 0.0) / (1 - self.layer.p)
        for a, b, s, dy in zip(self.lora_A, self.lora_B, self.scalings, self.grads, strict=True):
            dy = wide(dy[own])
            found_A.append((s * (dy @ wide(b)).t() @ x).square().sum())
            found_B.append((s * dy.t() @ (x @ wide(a).t())).square().sum())
        return torch.stack([*found_A, *found_B])


def wrong(layer: Layer) -> str:
    """What is wrong with a layer's results, or nothing."""
    inputs, group = Inputs(layer), len(layer.ns)
    ys, found, keep = inputs.results()
    lora = found[1 : 1 + group], found[1 + group :]
    row = slot_reference(Watched(inputs.x.detach(), ys, inputs.grads, found[0], *lora))
    return (
        compare(layer, [*ys, *found], inputs.expected(keep))
        or compare_rows(inputs.slot, row)
        or (compare_squares(inputs, keep, found) if layer.examples else "")
    )


def compare_squares(inputs: Inputs, keep: Tensor | None, found: list[Tensor]) -> str:
    """Squares against the gradients of float64 one example at a time, of which those of TF32 operands may be off by
    1e-3 of the sums of absolute values; twice the same bits, and the same gradients without asking.
    """
    layer, squares = inputs.layer, inputs.squares.clone()
    again = inputs.results()[1]
    if not torch.equal(squares, inputs.squares):
        return "squares are not the same twice"
    silent = inputs.results(asked=False)[1]
    if not all(torch.equal(one, other) for both in (again, silent) for one, other in zip(found, both, strict=True)):
        return "gradients are not the same bits with squares and without"
    tolerance = 1e-6 if layer.dtype == FP32 or layer.old else 1e-3
    for e, (start, stop) in enumerate(pairwise((0, *accumulate(layer.examples)))):
        if e >= MOST_EXAMPLES:
            break
        own = slice(start, stop)
        wanted, most = (inputs.squares_of(own, keep, absolute) for absolute in (False, True))
        error = ((squares[e] - wanted).abs() / most.clamp(min=1e-300)).max()
        if not float(error) <= tolerance:
            return f"squares of example {e} are off by {float(error):.2e}, more than {tolerance:.0e}"
    return ""


def drawn_mask(layer: Layer, seed: Tensor) -> Tensor:
    """The mask [M, K] that dropout draws: with A, B the identity and W = 0 the output is keep(1) / (1 - p)."""
    eye, nothing = torch.eye(layer.k, device=DEVICE), torch.zeros(layer.k, layer.k, device=DEVICE)
    ones = torch.ones(layer.m, layer.k, device=DEVICE)
    (y,) = lora_linear(ones, [nothing], [eye], [eye], [1.0], dropout_p=layer.p, seed=seed)
    return y > 0.5


def compare(layer: Layer, found: list[Tensor], wanted: list[Tensor]) -> str:
    """The first of outputs, dX, dA and dB that is too far from float64."""
    group = len(layer.ns)
    names = [f"{name}{i}" for name, n in (("Y", group), ("dX", 1), ("dA", group), ("dB", group)) for i in range(n)]
    walk = max(ROUNDING[FP32], 2.0**-24 * max(layer.m, layer.k, *layer.ns) ** 0.5)
    gradient = TF32 if layer.dtype != FP32 and not layer.old else walk
    for name, one, other in zip(names, found, wanted, strict=True):
        # of a 16-bit Y the base product and the sum are rounded; a group's dX adds a product at a time
        rounding = (1 + group) * max(ROUNDING[layer.dtype], walk)
        tolerance = rounding + gradient if name[0] == "Y" or name[:2] == "dX" else 2 * gradient
        error = float((one.double() - other).norm() / other.norm())
        if not error <= tolerance:
            return f"{name} is off by {error:.2e}, more than {tolerance:.2e}"
    return ""


def compare_rows(slot: Tensor, wanted: Tensor) -> str:
    """The first statistic that is not what the results hold: counts equal, norms to 1e-6."""
    for index, (row, other) in enumerate(zip(slot, wanted, strict=True)):
        same = torch.equal(row[1:].nan_to_num(-1), other[1:].nan_to_num(-1))
        if not same or not torch.allclose(row[:1].sqrt(), other[:1].sqrt(), rtol=1e-6, atol=0, equal_nan=True):
            return f"row {index} of statistics is {row.tolist()}, not {other.tolist()}"
    return ""


def main() -> int:
    """The small list alone, in a process of its own: what the sanitizer looks at."""
    wrongs: list[str] = []

    def check(holds: bool, text: str) -> None:
        print("ok" if holds else "FAILED", text, flush=True)
        if not holds:
            wrongs.append(text)

    attempt(True, check)
    return int(bool(wrongs))
