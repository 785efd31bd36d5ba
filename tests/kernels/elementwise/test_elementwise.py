"""Norm, gated activation and rotation against their plain references in fp64, compiled and by ATen."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import ClassVar

import pytest
import torch
from lora_train.kernels import cpu
from lora_train.kernels.elementwise.gated import ACTIVATIONS, gated, gated_reference
from lora_train.kernels.elementwise.gelu import gelu, gelu_reference
from lora_train.kernels.elementwise.layer_norm import layer_norm, layer_norm_reference
from lora_train.kernels.elementwise.rms_norm import rms_norm, rms_norm_reference
from lora_train.kernels.elementwise.rotary import rotary, rotary_reference
from lora_train.kernels.lora_linear import lora_linear
from lora_train.kernels.statistics.tensor_stats_aten import round_with_stats_reference
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..helpers import at_level, levels_here

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


@pytest.fixture(params=["compiled", "aten"])
def path(request, monkeypatch):
    """With the compiled loops, where there are any, and without."""
    if request.param == "aten":
        monkeypatch.setattr(cpu, "AVAILABLE", False)
    elif not cpu.AVAILABLE:
        pytest.skip("no compiler when the package was installed")


def compare(ours: Callable[..., Tensor], reference: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Values and gradients; the reference's gradients by autograd on the same stored values."""
    dtype = inputs[0].dtype
    mine, theirs = ([tensor.clone().requires_grad_() for tensor in inputs] for _ in range(2))
    y, expected = ours(*mine), reference(*theirs)
    assert (y.dtype, y.shape) == (expected.dtype, expected.shape)
    dy = torch.randn(y.shape).to(dtype)
    y.backward(dy)
    expected.backward(dy)
    pairs = [(y, expected), *((a.grad, b.grad) for a, b in zip(mine, theirs, strict=True))]
    for found, wanted in pairs:
        assert found is not None
        assert wanted is not None
        scale = wanted.abs().max().item() if wanted.numel() else 0.0
        torch.testing.assert_close(found, wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * scale)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 7, 63), (2, 3), (0, 8), (300, 576)])
def test_rms_norm(path, dtype, shape):
    torch.manual_seed(0)
    weight = torch.randn(shape[-1]).to(dtype)
    x = (3 * torch.randn(shape)).to(dtype)
    compare(lambda x: rms_norm(x, weight, 1e-5), lambda x: rms_norm_reference(x, weight, 1e-5), x)


def test_an_offset_is_added_to_the_weight(path):
    x, weight = torch.randn(4, 30), torch.randn(30)
    compare(
        lambda x: rms_norm(x, weight, 1e-5, offset=1.0), lambda x: rms_norm_reference(x, weight, 1e-5, offset=1.0), x
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 7, 63), (1, 30), (0, 8)])
def test_layer_norm(dtype, shape):
    torch.manual_seed(0)
    weight, bias = torch.randn(2, shape[-1]).to(dtype)
    x = (3 * torch.randn(shape)).to(dtype)
    for b, out in ((bias, None), (None, torch.float32)):
        compare(
            lambda x, b=b, out=out: layer_norm(x, weight, b, 1e-2, dtype=out),
            lambda x, b=b, out=out: layer_norm_reference(x, weight, b, 1e-2, dtype=out),
            x,
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 431), (1,), (0, 4), (64, 1536)])
def test_gated(path, dtype, shape):
    torch.manual_seed(0)
    g, u = (4 * torch.randn(shape)).to(dtype), torch.randn(shape).to(dtype)
    for act in ACTIVATIONS:
        compare(lambda g, u, act=act: gated(g, u, act), lambda g, u, act=act: gated_reference(g, u, act), g, u)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("act", ["gelu", "gelu_tanh"])
def test_gelu(dtype, act):
    torch.manual_seed(0)
    compare(lambda x: gelu(x, act), lambda x: gelu_reference(x, act), (4 * torch.randn(3, 431)).to(dtype))


@pytest.mark.parametrize("scale", [1e5, 1e-7])
def test_what_is_rounded_is_counted(path, scale):
    """The rows of results and gradients, against fp32 results rounded by the reference."""
    torch.manual_seed(0)
    weight, cos = torch.full((64,), scale), torch.randn(1, 6, 12)
    x, u, dy = torch.randn(2, 6, 64), torch.randn(2, 6, 64) * min(scale, 3e4), torch.randn(2, 6, 64) * min(scale, 1e4)
    x, u, dy = x.half(), u.half(), dy.half()

    def heads(x: Tensor) -> Tensor:
        return x.view(2, 6, 4, 16).transpose(1, 2)

    cases: list[tuple[Callable[..., Tensor], Callable[..., Tensor], list[Tensor]]] = [
        (lambda x, s: rms_norm(x, weight, 1e-5, slot=s), lambda x: rms_norm_reference(x, weight, 1e-5), [x]),
        (
            lambda x, s: layer_norm(x, weight, None, 1e-5, slot=s),
            lambda x: layer_norm_reference(x, weight, None, 1e-5),
            [x],
        ),
        (lambda g, u, s: gated(g, u, slot=s), gated_reference, [x, u]),
        (lambda x, s: gelu(x, slot=s), gelu_reference, [u]),
        (lambda x, s: rotary(heads(x), cos, cos, slot=s), lambda x: rotary_reference(heads(x), cos, cos), [u]),
    ]
    n_lost = 0
    for ours, reference, inputs in cases:
        slot = torch.full((1 + len(inputs), 9), torch.nan, dtype=torch.float64)
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        y = ours(*leaves, slot)
        y.backward(heads(dy) if y.ndim == 4 else dy)
        exact = [tensor.clone().float().requires_grad_() for tensor in inputs]
        wanted = reference(*exact)
        wanted.backward((heads(dy) if y.ndim == 4 else dy).float())
        for row, result in zip(slot, [wanted.detach(), *(leaf.grad for leaf in exact)], strict=True):
            assert result is not None
            expected = round_with_stats_reference(result, torch.float16)[1]
            n_lost += int(expected[4] + expected[5])
            # a value that the two ways round differently may lie on either side of a limit
            torch.testing.assert_close(row[2:], expected[2:], rtol=0, atol=2)
            torch.testing.assert_close(row[:2], expected[:2], rtol=1e-3, atol=0)
    assert n_lost > 100


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "angles", "rotated"), [(2, 2, 12), (3, 1, 20), (1, 1, 2)])
def test_rotary(path, dtype, batch, angles, rotated):
    torch.manual_seed(0)
    cos, sin = torch.randn(angles, 6, rotated), torch.randn(angles, 6, rotated)
    x = torch.randn(batch, 6, 4, 20).to(dtype)
    compare(lambda x: rotary(x.transpose(1, 2), cos, sin), lambda x: rotary_reference(x.transpose(1, 2), cos, sin), x)


def test_of_one_large_projection_only_heads_are_read(path):
    """GPT-NeoX cuts queries and keys out of one tensor."""
    torch.manual_seed(0)
    cos, sin = torch.randn(1, 6, 8), torch.randn(1, 6, 8)
    compare(
        lambda x: rotary(x.chunk(3, dim=-1)[1].transpose(1, 2), cos, sin),
        lambda x: rotary_reference(x.chunk(3, dim=-1)[1].transpose(1, 2), cos, sin),
        torch.randn(2, 6, 4, 60),
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_so_where_it_is(path, bad):
    x = torch.ones(4, 16)
    x[2, 3] = bad
    ones = torch.ones(4, 16)
    assert torch.equal((~rms_norm(x, torch.ones(16), 1e-5).isfinite()).any(-1), torch.tensor([0, 0, 1, 0]).bool())
    assert (~gated(x, ones).isfinite()).nonzero().tolist() == [[2, 3]]
    assert (~gated(ones, x).isfinite()).nonzero().tolist() == [[2, 3]]
    turned = rotary(x.view(1, 1, 4, 16), torch.ones(1, 4, 16), torch.full((1, 4, 16), 0.5))
    assert (~turned.isfinite()).nonzero()[:, 2:].tolist() == [[2, 3], [2, 11]]


def test_a_gate_far_from_zero(path):
    """silu is the identity far above zero and nothing far below; its slope is one and zero."""
    g = torch.tensor([200.0, 88.0, -88.0, -200.0], requires_grad=True)
    y = gated(g, torch.full((4,), 2.0))
    y.sum().backward()
    torch.testing.assert_close(y, torch.tensor([400.0, 176.0, 0.0, 0.0]), atol=1e-33, rtol=1e-6)
    assert g.grad is not None
    torch.testing.assert_close(g.grad, torch.tensor([2.0, 2.0, 0.0, 0.0]), atol=1e-33, rtol=1e-6)


def test_a_product_too_large_for_fp16_is_infinite(path):
    y = gated(torch.full((3,), 300.0).half(), torch.tensor([200.0, 218.3, 219.0]).half())
    assert y.isinf().tolist() == [False, False, True]


def test_all_instructions_give_the_same_bits(monkeypatch):
    if not cpu.AVAILABLE:
        pytest.skip("no compiler when the package was installed")
    torch.manual_seed(0)
    for dtype in DTYPES:
        x, dy = torch.randn(2, 301, 1000).mul_(5).to(dtype)
        weight, cos = torch.randn(1000), torch.randn(1, 301, 30)
        heads = x.view(1, 301, 10, 100).transpose(1, 2)

        def results(x=x, dy=dy, weight=weight, cos=cos, heads=heads) -> list[Tensor]:
            y, rstd = cpu.norm(x, weight, 1e-5)
            gate = (cpu.gate(x, dy), *cpu.gate_backward(dy, x, dy))
            turned = [cpu.rotate(heads, cos, cos, backward) for backward in (False, True)]
            return [y, rstd, cpu.norm_backward(dy, x, weight, rstd), *gate, *turned]

        expected = results()
        for threads, level in itertools.product((1, 3), levels_here()):
            monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
            with at_level(level):
                assert all(torch.equal(*pair) for pair in zip(results(), expected, strict=True)), level


def test_operators_are_as_torch_wants_them():
    x = torch.randn(3, 8, requires_grad=True)
    cos = torch.randn(1, 5, 4)
    torch.library.opcheck(torch.ops.lora_train.rms_norm.default, (x, torch.randn(8), 1e-5, 0.0))
    torch.library.opcheck(torch.ops.lora_train.gated.default, (x, torch.randn(3, 8, requires_grad=True), "silu"))
    torch.library.opcheck(torch.ops.lora_train.gelu.default, (x, "gelu_tanh"))
    norm = (x.detach().half().requires_grad_(), torch.randn(8).half(), torch.randn(8).half(), 1e-5, torch.float32)
    torch.library.opcheck(torch.ops.lora_train.layer_norm.default, norm)
    heads = torch.randn(2, 3, 5, 6, requires_grad=True)
    torch.library.opcheck(torch.ops.lora_train.rotary.default, (heads, cos, cos))


def test_under_a_dispatch_mode_the_same_is_an_operator():
    """What looks for the operation to blame must see one; without such a mode nobody pays for the dispatcher."""

    class Seen(TorchDispatchMode):
        names: ClassVar[list[str]] = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.names.append(str(func))
            return func(*args, **(kwargs or {}))

    def results() -> list[Tensor]:
        torch.manual_seed(0)
        x, u, weight, A, B = (torch.randn(s, requires_grad=True) for s in ((6, 16), (6, 16), (8, 16), (2, 16), (8, 2)))
        cos, slot = torch.randn(1, 6, 4), torch.zeros(6, 9, dtype=torch.float64)
        rows = torch.zeros(2, 9, dtype=torch.float64)
        y = gated(rms_norm(x, torch.ones(16), 1e-5, slot=rows), gelu(layer_norm(u, torch.ones(16), None, 1e-5)))
        y = rotary(y.view(1, 6, 4, 4).transpose(1, 2), cos, cos).transpose(1, 2).reshape(6, 16)
        (y,) = lora_linear(y, [weight.detach()], [A], [B], [2.0], dropout_p=0.5, seed=torch.tensor([3]), slot=slot)
        y.square().sum().backward()
        return [y.detach(), slot, rows, *(t.grad for t in (x, u, A, B) if t.grad is not None)]

    direct = results()
    with Seen():
        seen = results()
    assert len(direct) == 7
    for ours, theirs in zip(direct, seen, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    operators = {name.split(".")[1] for name in Seen.names if name.startswith("lora_train.")}
    assert {"rms_norm", "layer_norm", "gated", "gelu", "rotary", "lora_linear", "lora_linear_backward"} <= operators
