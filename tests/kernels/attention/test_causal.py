"""Causal attention in C against fp64: output, gradients, heads that share keys, any strides."""

import pytest
import torch
from lora_train.kernels import cpu
from lora_train.kernels.attention.causal import attention, attention_reference, takes
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..helpers import DTYPES, random_shapes

pytestmark = pytest.mark.skipif(not cpu.AVAILABLE, reason="the C extension was not built")

# Largest error, ||a - b||, against the terms' sizes. A gradient has the rounding of the output in it, which was kept.
ROUNDING = {torch.float32: 2e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}
# Rows of the batch, heads, heads of K and V, positions, values of a head: around blocks of 32 queries.
SHAPES = [
    (2, 1, 1, 1, 16),
    (1, 4, 4, 31, 16),
    (3, 6, 2, 32, 48),
    (2, 9, 3, 33, 64),
    (1, 8, 2, 100, 80),
    (2, 2, 2, 257, 32),
    *((batch, n * shared, n, rows, 16 * c) for batch, shared, n, rows, c in random_shapes(6, 3, 3, 3, 90, 6)),
]


def heads(shape: tuple[int, int, int, int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Q, K, V as a projection leaves them, and a gradient of the output."""
    batch, n_heads, n_kv_heads, rows, cols = shape
    generator = torch.Generator().manual_seed(sum(shape))

    def randn(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator).to(dtype)

    q, k, v = (randn(batch, rows, n, cols).transpose(1, 2) for n in (n_heads, n_kv_heads, n_kv_heads))
    return q * 2, k, v, randn(batch, rows, n_heads, cols)


def results(q: Tensor, k: Tensor, v: Tensor, grad: Tensor, attend=attention) -> list[Tensor]:
    q, k, v = (x.detach().clone(memory_format=torch.preserve_format).requires_grad_() for x in (q, k, v))
    y = attend(q, k, v, 0.3)
    return [y, *torch.autograd.grad(y, [q, k, v], grad)]


def sizes(q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> list[Tensor]:
    """Of output and gradients the sum of the absolute values of their terms, where a difference counts as a sum: one
    row attends to itself alone, and its own gradients cancel out."""
    q, grad, shared = q.double(), grad.double().transpose(1, 2).abs(), q.shape[1] // k.shape[1]
    k, v = (x.double().repeat_interleave(shared, 1) for x in (k, v))
    chances = (0.3 * q @ k.mT).masked_fill(~torch.ones(q.shape[2], q.shape[2]).tril().bool(), -torch.inf).softmax(-1)
    slopes = grad @ v.abs().mT
    slopes = 0.3 * chances * (slopes + (slopes * chances).sum(-1, keepdim=True))
    of_shared = (x.unflatten(1, (-1, shared)).sum(2) for x in (slopes.mT @ q.abs(), chances.mT @ grad))
    return [(chances @ v.abs()).transpose(1, 2), slopes @ k.abs(), *of_shared]


def assert_near(found: list[Tensor], q: Tensor, k: Tensor, v: Tensor, grad: Tensor, rounding: float = 0) -> None:
    expected = results(q.double(), k.double(), v.double(), grad.double(), attention_reference)
    for name, a, b, size in zip(("out", "dq", "dk", "dv"), found, expected, sizes(q, k, v, grad), strict=True):
        assert (a.shape, a.dtype) == (b.shape, q.dtype), name
        assert (a.double() - b).norm() <= (rounding or ROUNDING[q.dtype]) * size.norm(), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_fp64(shape: tuple, dtype: torch.dtype):
    tensors = heads(shape, dtype)
    assert_near(results(*tensors), *tensors)


def test_any_strides_and_a_gradient_that_is_repeated():
    q, k, v, grad = heads((2, 4, 2, 40, 32), torch.float32)
    wide = torch.randn(2, 40, 4, 96)
    q = wide[..., 32:64].transpose(1, 2)
    k = k.transpose(2, 3).contiguous().transpose(2, 3)  # positions dense instead of values
    grad = grad[:1, :1].expand(2, 40, 4, 32)
    assert_near(results(q, k, v, grad), q, k, v, grad)


def test_a_position_sees_nothing_behind_it():
    q, k, v, grad = heads((1, 2, 2, 50, 16), torch.float32)
    before = attention(q, k, v, 0.3)
    k[:, :, 20:], v[:, :, 20:] = 7.0, -3.0
    after = attention(q, k, v, 0.3)
    assert torch.equal(before[:, :20], after[:, :20])
    assert (before[:, 20:] != after[:, 20:]).all()
    assert grad is not None


def test_large_and_lost_scores():
    """A softmax of scores whose exponentials would overflow is as exact as the scores; a NaN stays in its position, its
    head and its row of the batch, and shows.
    """
    q, k, v, grad = heads((2, 2, 2, 40, 16), torch.float32)
    assert_near(results(q * 300, k, v, grad), q * 300, k, v, grad, rounding=1e-4)
    q[1, 0, 5, 3] = torch.nan
    out, dq, dk, dv = results(q, k, v, grad)
    bad = (~out.isfinite()).any(-1).nonzero().tolist()
    assert bad == [[1, 5, 0]]
    for gradient in (dq, dk, dv):
        assert (~gradient.isfinite()).flatten(2).any(-1).nonzero().tolist() == [[1, 0]]


def test_an_infinite_key_is_seen_from_its_position_on():
    q, k, v, _ = heads((1, 1, 1, 40, 16), torch.float32)
    k[0, 0, 33, 0] = torch.inf
    expected = attention_reference(q, k, v, 0.3)
    bad = (~attention(q, k, v, 0.3).isfinite()).any(-1).flatten()
    assert torch.equal(bad, (~expected.isfinite()).any(-1).flatten())
    assert bad[33:].any()
    assert not bad[:33].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_do_not_change_the_bits(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    tensors = heads((3, 6, 2, 70, 32), dtype)
    found = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append(results(*tensors))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_what_it_takes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    q, k, v, _ = heads((1, 4, 2, 8, 32), torch.float32)
    assert takes(q, k, v)
    assert not takes(q[..., :24], k[..., :24], v[..., :24])  # no whole vectors
    assert not takes(q[:, :, :1], k, v)  # a cache
    assert not takes(q.double(), k.double(), v.double())
    assert not takes(q[:, :3], k, v)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert not takes(q, k, v)  # two shares for three threads
    monkeypatch.setattr(cpu, "AVAILABLE", False)
    assert not takes(q.expand(4, -1, -1, -1), k.expand(4, -1, -1, -1), v.expand(4, -1, -1, -1))


def test_under_a_dispatch_mode_the_same_is_an_operator():
    names = []

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.append(str(func))
            return func(*args, **(kwargs or {}))

    q, k, v, grad = heads((2, 4, 2, 40, 32), torch.float32)
    expected = results(q, k, v, grad)
    with Seen():
        found = results(q, k, v, grad)
    assert {"lora_train.attention.default", "lora_train.attention_backward.default"} <= set(names)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_the_operator_is_as_torch_wants_it():
    q, k, v, _ = heads((2, 4, 2, 5, 16), torch.float32)
    torch.library.opcheck(torch.ops.lora_train.attention.default, (*(x.requires_grad_() for x in (q, k, v)), 0.3))


def test_its_error_is_that_of_torchs_own():
    """Against fp64, in float32: what the README says of the two kernels."""
    q, k, v, grad = heads((2, 6, 6, 200, 64), torch.float32)
    expected = results(q.double(), k.double(), v.double(), grad.double(), attention_reference)

    def torchs(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale).transpose(1, 2)

    for ours, theirs, exact in zip(results(q, k, v, grad), results(q, k, v, grad, torchs), expected, strict=True):
        assert (ours.double() - exact).norm() <= 1.2 * (theirs.double() - exact).norm()
