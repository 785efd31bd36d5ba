"""The Triton kernels of norms, activations and rotation: values, gradients and statistics against float64."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lora_train.kernels.backend import triton_on_cpu
from lora_train.kernels.elementwise.gated import gated
from lora_train.kernels.elementwise.gelu import gelu
from lora_train.kernels.elementwise.layer_norm import layer_norm
from lora_train.kernels.elementwise.rms_norm import rms_norm
from lora_train.kernels.elementwise.rotary import rotary
from lora_train.kernels.statistics import rounding
from lora_train.kernels.statistics.tensor_stats import tensor_stats_reference
from torch import Tensor

from ...conftest import ROOT
from ..helpers import DTYPES, INF, NAN, assert_row, random_shapes

# One rounding, of at most half a unit in the last place, or of one in bf16, which the interpreter truncates; and
# fp32 sums of up to 16384 terms in a tree, with functions that are good to a few units, before it.
EPS = {dtype: torch.finfo(dtype).eps for dtype in DTYPES}
TOLERANCE = {dtype: eps + 16 * EPS[torch.float32] for dtype, eps in EPS.items()}
ACTS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda g: F.gelu(g, approximate="tanh"),
}
# About the mean square of the inputs: the gradient of a row of one value is then no difference of equal numbers.
EPSILON = 10.0
NORM_SHAPES = [(1, 1), (1, 7), (3, 1), (5, 7, 63), (33, 64), (0, 8), (1, 576), (2, 5120), (3, 8193), (1, 16384)]
# batch, positions, heads, values of a head, of them turned (an even number), angles
TURNS = [
    (batch, positions, heads, 2 * half + rest, 2 * half, draw % 2 * (batch - 1) + 1)
    for draw, (batch, positions, heads, half, rest) in enumerate(random_shapes(6, 3, 20, 6, 40, 9))
]
NORM_SHAPES += random_shapes(8, 5, 40, 700)


@pytest.fixture
def device(triton_device: str) -> Iterator[str]:
    """Where the public functions take the Triton kernels."""
    with triton_on_cpu() if triton_device == "cpu" else nullcontext():
        yield triton_device


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def compare(
    ours: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    *inputs: Tensor,
    device: str,
    dtype: torch.dtype | None = None,
) -> None:
    """Values and gradients; the reference's are float64, by autograd on the same stored values.

    Errors are measured against the largest value, since differences lose digits, and where all are zero but for the
    reference's own rounding, not at all.
    """
    mine = [tensor.clone().to(device).requires_grad_() for tensor in inputs]
    theirs = [tensor.clone().double().requires_grad_() for tensor in inputs]
    y, expected = ours(*mine), reference(*theirs)
    assert (y.dtype, y.shape) == (dtype or inputs[0].dtype, expected.shape)
    dy = normal(*y.shape, seed=7).to(y.dtype)
    y.backward(dy.to(device))
    expected.backward(dy.double())
    for found, wanted in [(y, expected), *((a.grad, b.grad) for a, b in zip(mine, theirs, strict=True))]:
        assert found is not None
        assert wanted is not None
        if wanted.numel():
            error = (found.detach().cpu().double() - wanted).abs().max() / wanted.abs().max().clamp(min=1e-9)
            assert error <= TOLERANCE[found.dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", NORM_SHAPES)
def test_rms_norm(device, dtype, shape):
    weight = normal(shape[-1], seed=1).to(dtype)
    for offset in (0.0, 1.0):
        compare(
            lambda x, offset=offset: rms_norm(x, weight.to(device), EPSILON, offset=offset),
            lambda x, offset=offset: F.rms_norm(x, x.shape[-1:], weight.double() + offset, EPSILON),
            (3 * normal(*shape)).to(dtype),
            device=device,
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", NORM_SHAPES)
def test_layer_norm(device, dtype, shape):
    weight, bias = (normal(shape[-1], seed=seed).to(dtype) for seed in (1, 2))
    x = (3 * normal(*shape) + 1).to(dtype)
    for b, out in ((bias, None), (None, None), (bias, torch.float32)):
        compare(
            lambda x, b=b, out=out: layer_norm(
                x, weight.to(device), None if b is None else b.to(device), EPSILON, dtype=out
            ),
            lambda x, b=b: F.layer_norm(x, x.shape[-1:], weight.double(), None if b is None else b.double(), EPSILON),
            x,
            device=device,
            dtype=out,
        )


def test_layer_norm_of_values_far_from_zero(device):
    """The mean is taken away before anything is squared."""
    x = normal(3, 700) + 1000
    found = layer_norm(x.to(device), torch.ones(700, device=device), None, 0.0)
    # the stored x are 6e-5 apart, and their mean is good to half of that
    torch.testing.assert_close(
        found.cpu().double(), F.layer_norm(x.double(), (700,), eps=0.0), rtol=0, atol=1000 * EPS[torch.float32]
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (1, 1), (3, 431), (0, 4), (2, 3, 4097), *random_shapes(4, 90, 900)])
@pytest.mark.parametrize("act", ACTS)
def test_activations(device, dtype, shape, act):
    g, u = (4 * normal(*shape)).to(dtype), normal(*shape, seed=1).to(dtype)
    compare(lambda g, u: gated(g, u, act), lambda g, u: ACTS[act](g) * u, g, u, device=device)
    if act != "silu":
        compare(lambda g: gelu(g, act), lambda g: ACTS[act](g), g, device=device)


@pytest.mark.parametrize("act", ACTS)
def test_activations_far_from_zero(device, act):
    """The identity far above zero and nothing far below; slopes of one and zero."""
    g = torch.tensor([200.0, 88.0, -88.0, -200.0], device=device, requires_grad=True)
    y = gated(g, torch.full((4,), 2.0, device=device), act)
    y.sum().backward()
    assert g.grad is not None
    for found, wanted in ((y, [400.0, 176.0, 0.0, 0.0]), (g.grad, [2.0, 2.0, 0.0, 0.0])):
        torch.testing.assert_close(found.cpu(), torch.tensor(wanted), atol=1e-33, rtol=1e-6)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    cos, sin, width = cos.double()[:, None], sin.double()[:, None], cos.shape[-1]
    low, high = x[..., :width].chunk(2, dim=-1)
    return torch.cat([x[..., :width] * cos + torch.cat([-high, low], -1) * sin, x[..., width:]], -1)


def as_heads(layout: str, x: Tensor) -> Tensor:
    """[B, heads, S, D] of [B, S, heads, D], as architectures come by it."""
    if layout == "one of three":  # GPT-NeoX cuts it out of one projection
        x = torch.cat([x, x, x], -1).chunk(3, dim=-1)[1]
    heads = x.transpose(1, 2)
    return heads.contiguous() if layout == "heads first" else heads


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["positions first", "heads first", "one of three"])
@pytest.mark.parametrize(
    ("batch", "positions", "heads", "width", "rotated", "angles"),
    [
        (1, 1, 1, 2, 2, 1),
        (2, 6, 4, 20, 12, 2),
        (3, 5, 3, 16, 16, 1),
        (1, 4, 40, 128, 32, 1),
        (2, 1, 5, 48, 32, 2),
        *TURNS,
    ],
)
def test_rotary(device, dtype, layout, batch, positions, heads, width, rotated, angles):
    cos, sin = (normal(angles, positions, rotated, seed=seed).to(dtype) for seed in (1, 2))
    compare(
        lambda x: rotary(as_heads(layout, x), cos.to(device), sin.to(device)),
        lambda x: turned(x.transpose(1, 2), cos, sin),
        normal(batch, positions, heads, width).to(dtype),
        device=device,
    )


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_what_is_not_finite_stays_so_where_it_is(device, bad):
    x, ones = torch.ones(4, 16, device=device), torch.ones(4, 16, device=device)
    x[2, 3] = bad
    weight = torch.ones(16, device=device)
    for y in (rms_norm(x, weight, 1e-5), layer_norm(x, weight, None, 1e-5)):
        assert (~y.isfinite()).any(-1).tolist() == [False, False, True, False]
    for act in ACTS:
        assert (~gated(x, ones, act).isfinite()).nonzero().tolist() == [[2, 3]]
        assert (~gated(ones, x, act).isfinite()).nonzero().tolist() == [[2, 3]]
    assert (~gelu(x).isfinite()).nonzero().tolist() == [[2, 3]]
    angle = torch.full((1, 4, 16), 0.5, device=device)
    assert (~rotary(x.view(1, 1, 4, 16), angle, angle).isfinite()).nonzero()[:, 2:].tolist() == [[2, 3], [2, 11]]


def cases(scale: float, device: str) -> list[tuple[str, Callable[..., Tensor], list[Tensor]]]:
    """Every operator with a slot, on fp16 inputs that make results of about `scale`, none of them zero."""
    half = torch.float16
    x = normal(9, 700).clamp(0.01).to(device, half)
    weight = torch.full((700,), min(scale, 6e4), device=device)
    cos, sin = (torch.full((1, 9, 70), value, device=device) for value in (0.9, 0.37))
    large = (x.float() * scale).clamp(2**-24, 60000).to(half)
    heads = large.view(1, 9, 7, 100).transpose(1, 2)
    return [
        ("rms_norm", lambda x, slot: rms_norm(x, weight, 1e-5, slot=slot), [x]),
        ("layer_norm", lambda x, slot: layer_norm(x, weight, weight, 1e-5, slot=slot), [x]),
        ("gated", lambda g, u, slot: gated(g, u, slot=slot), [x, large]),
        ("gelu", lambda x, slot: gelu(x, slot=slot), [large]),
        ("rotary", lambda x, slot: rotary(x, cos, sin, slot=slot), [heads]),
    ]


@pytest.mark.parametrize("programs", [1024, 2])
@pytest.mark.parametrize("scale", [1e5, 1e-7])
def test_statistics_are_exact(device, scale, programs, monkeypatch):
    """Every infinity of these finite inputs is an overflow, every zero an underflow."""
    monkeypatch.setattr(rounding, "MAX_PROGRAMS", programs)
    found = 0
    for name, operator, inputs in cases(scale, device):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        slot = torch.full((2 + (name == "gated"), 9), 5.0, dtype=torch.float64, device=device)
        y = operator(*leaves, slot)
        y.backward((scale * normal(*y.shape, seed=5).abs().clamp(0.5, 2)).to(device, y.dtype).clamp(2**-24, 60000))
        results = [y.detach(), *(leaf.grad for leaf in leaves)]
        assert len(results) == len(slot), name
        for row, result in zip(slot.cpu(), results, strict=True):
            expected = tensor_stats_reference(result.cpu())
            assert not expected[2]
            expected[4], expected[5] = expected[3], expected[7]
            found += int(expected[4] + expected[5])
            assert_row(row, expected)
    assert found > 100


def test_fp32_results_overflow_nothing(device):
    slot = torch.zeros(2, 9, dtype=torch.float64, device=device)
    x = normal(3, 50).half().to(device).requires_grad_()
    y = layer_norm(x, torch.full((50,), 1e5, device=device), None, 1e-5, dtype=torch.float32, slot=slot)
    y.backward(torch.full_like(y, 1e-3) * y.detach().sign())
    assert slot[0, 4:].nan_to_num(-1).tolist() == [0, 0, -1, -1, 150]
    assert x.grad is not None
    assert slot[1, 3] == x.grad.isinf().sum()
    assert slot[1, 8] == 150


def test_without_a_slot_nothing_is_counted(device, monkeypatch):
    monkeypatch.setattr(rounding, "reduce_partials", None)
    for _, operator, inputs in cases(1.0, device):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        operator(*leaves, None).sum().backward()


def test_the_same_bits_twice_with_and_without_statistics(device):
    for name, operator, inputs in cases(1.0, device):
        found = []
        for slot in (None, None, torch.zeros(3 if name == "gated" else 2, 9, dtype=torch.float64, device=device)):
            leaves = [tensor.clone().requires_grad_() for tensor in inputs]
            y = operator(*leaves, slot)
            y.backward(normal(*y.shape, seed=5).to(device, y.dtype))
            found.append([y.detach(), *(leaf.grad for leaf in leaves)])
        for first, second, counted in zip(*found, strict=True):
            assert torch.equal(first, second), name
            assert torch.equal(first, counted), name


LAUNCHES = """
import torch
from benchmarks.fake_cuda import fake_cuda
from lora_train.kernels.elementwise import gated, gelu, layer_norm, rms_norm, rotary

def run(rows, cols, dtype, slots):
    x, u = (torch.ones(rows, cols, dtype=dtype, requires_grad=True) for _ in range(2))
    weight, angle = torch.ones(cols, dtype=dtype), torch.ones(1, rows, max(2, cols // 4), dtype=dtype)
    heads = torch.ones(2, rows, 1, 3 * max(2, cols), dtype=dtype, requires_grad=True)
    slot = torch.zeros(3, 9, dtype=torch.float64) if slots else None
    two = None if slot is None else slot[:2]
    for y in (
        rms_norm.rms_norm(x, weight, 1e-5, slot=two),
        layer_norm.layer_norm(x, weight, weight, 1e-5, slot=two),
        gated.gated(x, u, slot=slot),
        gelu.gelu(x, slot=two),
        rotary.rotary(heads.chunk(3, -1)[1].transpose(1, 2), angle, angle, slot=two),
    ):
        y.backward(torch.ones(y.shape, dtype=y.dtype))

for cols in (1, 128):
    for slots in (False, True):
        with fake_cuda(80) as driver:
            run(1, cols, torch.float16, slots)
            seen = len(driver.variants)
            launched = sum(driver.launches.values())
            assert launched == (20 if slots else 10), driver.launches
            for rows in (2, 16, 17, 273, 1025):
                run(rows, cols, torch.float16, slots)
            assert len(driver.variants) == seen, [variant.key() for variant in driver.variants[seen:]]
            for variant in driver.variants if cols == 1 and slots else ():
                variant.compile()
print("compiled")
"""


def test_any_number_of_rows_is_one_variant_that_compiles():
    """In a process of its own with a stand-in for the driver: the interpreter specialises no argument."""
    environment: dict[str, Any] = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, "-c", LAUNCHES], cwd=ROOT, env=environment, capture_output=True, text=True,
        timeout=600, check=False,
    )  # fmt: skip
    assert result.stdout == "compiled\n", result.stderr[-3000:]
