"""A fused LoRA linear run on a backend and in fp64, and how far the two may be apart."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from lora_train.kernels import cpu
from lora_train.kernels.backend import triton_on_cpu
from lora_train.kernels.frozen import product as frozen_product
from lora_train.kernels.lora_linear import launch as lora_linear_launch
from lora_train.kernels.lora_linear import lora_linear, site_names
from lora_train.kernels.lora_linear import passes as lora_passes
from lora_train.kernels.lora_linear import tiles as lora_linear_tiles
from lora_train.kernels.lora_linear.group import Dropout, Factor, Group
from lora_train.kernels.lora_linear.reference import Watched, lora_linear_reference, slot_reference
from lora_train.kernels.statistics.reduce import FIELDS
from torch import Tensor


@dataclass
class Backend:
    """Where a test runs, and how."""

    name: str
    device: str
    entered: Callable[[], contextlib.AbstractContextManager[Any]]
    sees_accumulator: bool
    tf32: bool

    def keep(self, x: Tensor, seed: Tensor, p: float) -> Tensor:
        """The mask that dropout draws for `x`."""
        if self.name.startswith("cpu"):
            return lora_passes.da(torch.eye(len(x)), torch.ones(x.shape), [len(x)], Dropout(seed, p), [None])[0].bool()
        return drawn_by_triton(x.to(self.device), Dropout(seed.to(self.device), p)).cpu()


def drawn_by_triton(x: Tensor, dropout: Dropout) -> Tensor:
    """The mask that dropout draws for `x` in a Triton kernel: what it leaves of ones."""
    zeros, ones = x.new_zeros(x.shape, dtype=torch.float32), x.new_ones(1, max(x.shape), 1, dtype=torch.float32)
    right = Factor([ones.view(1, -1)[:, : x.shape[1]].contiguous()], across=False)
    lora_linear_launch.up([zeros], ones[:, : len(x)], right, [1.0], dropout, False)
    return zeros.bool()


def on_backend(name: str, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """The backend of this name, for the time of a test."""
    if name == "cpu without C":
        monkeypatch.setattr(cpu, "AVAILABLE", False)
    if name != "cpu without C" and name.startswith("cpu") and not cpu.AVAILABLE:
        pytest.skip("the C extension was not built")
    if name == "cpu in tiles" and not cpu.TILES:
        pytest.skip("this chip multiplies no bf16 in tiles")
    monkeypatch.setattr(cpu, "TILES", name == "cpu in tiles")
    monkeypatch.setattr(frozen_product, "TILED_ROWS", 1)
    if name.startswith("cpu"):
        return Backend(name, "cpu", contextlib.nullcontext, sees_accumulator=True, tf32=False)
    if name == "cuda":
        return Backend(name, "cuda", contextlib.nullcontext, sees_accumulator=False, tf32=True)
    if name == "interpreter sm_75":
        monkeypatch.setattr(lora_linear_tiles, "has_tensor_cores", lambda device: False)
    return Backend(name, "cpu", triton_on_cpu, sees_accumulator=False, tf32=name == "interpreter")


@dataclass
class Layer:
    """A group of projections on one input, on the CPU."""

    x: Tensor
    weights: list[Tensor]
    lora_A: list[Tensor]
    lora_B: list[Tensor]
    scalings: list[float]
    biases: list[Tensor | None]
    grads: list[Tensor]


def make_layer(
    m: int, k: int, ns: tuple[int, ...], ranks: tuple[int, ...], dtype: torch.dtype, bias: bool = False
) -> Layer:
    generator = torch.Generator().manual_seed(m + k + sum(ns) + sum(ranks))

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return Layer(
        x=randn(m, k).to(dtype),
        weights=[(randn(n, k) / 8).to(dtype) for n in ns],
        lora_A=[randn(r, k) / 8 for r in ranks],
        lora_B=[randn(n, r) / 8 for n, r in zip(ns, ranks, strict=True)],
        scalings=[2.0 / (i + 1) for i in range(len(ns))],
        biases=[randn(n).to(dtype) if bias and i != 1 else None for i, n in enumerate(ns)],
        grads=[randn(m, n).to(dtype) for n in ns],
    )


@dataclass
class Result:
    ys: list[Tensor]
    dx: Tensor
    dA: list[Tensor]
    dB: list[Tensor]
    slot: Tensor

    def tensors(self) -> list[Tensor]:
        return [*self.ys, self.dx, *self.dA, *self.dB]


def run(backend: Backend, layer: Layer, p: float = 0.0, seed: Tensor | None = None, with_slot: bool = True) -> Result:
    """One forward and backward of `layer` on a backend; everything back on the CPU."""

    def leaf(t: Tensor) -> Tensor:
        return t.to(backend.device).clone().requires_grad_()

    x, lora_A, lora_B = leaf(layer.x), [leaf(a) for a in layer.lora_A], [leaf(b) for b in layer.lora_B]
    slot = torch.full((2 + 4 * len(lora_A), len(FIELDS)), -1.0, dtype=torch.float64, device=backend.device)
    with backend.entered():
        ys = lora_linear(
            x,
            [w.to(backend.device) for w in layer.weights],
            lora_A,
            lora_B,
            layer.scalings,
            biases=[None if b is None else b.to(backend.device) for b in layer.biases],
            dropout_p=p,
            seed=None if seed is None else seed.to(backend.device),
            slot=slot if with_slot else None,
        )
        torch.autograd.backward(ys, [grad.to(backend.device) for grad in layer.grads])
    back = [[t.grad.cpu() for t in group] for group in ([x], lora_A, lora_B)]  # type: ignore[union-attr]
    return Result([y.detach().cpu() for y in ys], back[0][0], back[1], back[2], slot.cpu())


def run_reference(layer: Layer, p: float = 0.0, keep: Tensor | None = None) -> Result:
    """The same in fp64."""

    def leaf(t: Tensor) -> Tensor:
        return t.double().requires_grad_()

    x, lora_A, lora_B = leaf(layer.x), [leaf(a) for a in layer.lora_A], [leaf(b) for b in layer.lora_B]
    biases = [None if b is None else b.double() for b in layer.biases]
    weights = [w.double() for w in layer.weights]
    group = Group(weights, biases, lora_A, lora_B, layer.scalings, Dropout(None, p))
    ys = lora_linear_reference(x, group, keep)
    torch.autograd.backward(ys, [grad.double() for grad in layer.grads])
    back: Any = [[t.grad for t in group] for group in ([x], lora_A, lora_B)]
    return Result([y.detach() for y in ys], back[0][0], back[1], back[2], torch.empty(0))


def assert_near(actual: Tensor, expected: Tensor, magnitude: Tensor, tolerance: float) -> None:
    """No element is further away than `tolerance` of the sum of the absolute values of its terms."""
    assert actual.shape == expected.shape
    # of a 16-bit result below its smallest normal number: half the distance of two numbers there, twice
    step = torch.finfo(actual.dtype).smallest_normal * torch.finfo(actual.dtype).eps
    error, allowed = (actual.double() - expected).abs(), tolerance * magnitude + step
    assert (error <= allowed).all(), f"{(error / allowed).max():.2f} times the error allowed"


def assert_slot(slot: Tensor, expected: Tensor, group: int) -> None:
    """Counts and absmax equal, null where null, norms to 1e-6."""
    for row, want, site in zip(slot, expected, site_names(group), strict=True):
        assert torch.equal(row[1:].nan_to_num(-1), want[1:].nan_to_num(-1)), f"{site}: {row} is not {want}"
        torch.testing.assert_close(row[0].sqrt(), want[0].sqrt(), rtol=1e-6, atol=0, equal_nan=True)


def magnitudes(layer: Layer, p: float, keep: Tensor | None) -> Result:
    """Of every result the sum of the absolute values of its terms: all is made of products and sums."""

    def positive(tensors: list[Tensor]) -> list[Tensor]:
        return [t.abs() for t in tensors]

    biases = [None if b is None else b.abs() for b in layer.biases]
    return run_reference(
        Layer(
            layer.x.abs(), positive(layer.weights), positive(layer.lora_A), positive(layer.lora_B),
            layer.scalings, biases, positive(layer.grads),
        ),
        p,
        keep,
    )  # fmt: skip


def tolerances(backend: Backend, layer: Layer) -> tuple[float, float]:
    """Of ys and dx, and of dA and dB: half a unit in the last place per rounding of a term, at most.

    A sum rounds once per term, in whatever order. 16-bit results are rounded twice, as base product and as sum. With
    TF32 three operands that are not 16-bit are rounded on the way to ys and dx (A, H, B), and two to dA and dB.
    """
    m, k = layer.x.shape
    terms = m + k + sum(weight.shape[0] for weight in layer.weights) + max(a.shape[0] for a in layer.lora_A) + 8
    half = layer.x.dtype != torch.float32
    sums, tf32 = terms * 2**-24, 2**-11 if backend.tf32 and half else 0.0
    return sums + 3 * tf32 + half * torch.finfo(layer.x.dtype).eps, sums + 2 * tf32


def check(backend: Backend, layer: Layer, result: Result, p: float = 0.0, keep: Tensor | None = None) -> None:
    """Everything that `run` brought back against fp64."""
    expected, magnitude = run_reference(layer, p, keep), magnitudes(layer, p, keep)
    rounded, lora = tolerances(backend, layer)
    n_rounded = len(result.ys) + 1
    for i, triple in enumerate(zip(result.tensors(), expected.tensors(), magnitude.tensors(), strict=True)):
        assert triple[0].dtype == (layer.x.dtype if i < n_rounded else torch.float32)
        assert_near(*triple, rounded if i < n_rounded else lora)
    known = backend.sees_accumulator
    slot = slot_reference(
        Watched(layer.x, result.ys, layer.grads, result.dx, result.dA, result.dB),
        expected.ys if known else None, expected.dx if known else None,
    )  # fmt: skip
    assert_slot(result.slot, slot, len(layer.weights))
