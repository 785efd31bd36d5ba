"""The chunked loss against fp64: loss, gradient, correct tokens, at any upstream factor, on every backend."""

import contextlib
import math
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from lora_train.kernels import cpu, cross_entropy
from lora_train.kernels.backend import triton_on_cpu
from lora_train.kernels.cross_entropy import (
    _linear_cross_entropy,
    linear_cross_entropy,
    linear_cross_entropy_reference,
    token_cross_entropy,
)
from lora_train.kernels.frozen import product as frozen_product
from torch import Tensor

from .helpers import random_shapes

# ||a - b|| / ||b|| of the gradient: fp32 products of 130 terms; one rounding to the stored dtype, and on CUDA
# one of softmax - onehot to 16 bits.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2**-11 + 2**-12, torch.bfloat16: 2**-8 + 2**-9}

Backend = tuple[str, Callable[[], AbstractContextManager[Any]]]


@pytest.fixture(params=["cpu", "cpu in tiles", "interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """Device and context; chunks so small that 63 tokens and 130 words need many."""
    for name, value in (("CPU_CHUNK", 1300), ("CUDA_CHUNK", 2600)):
        monkeypatch.setattr(cross_entropy, name, value)
    monkeypatch.setattr(frozen_product, "WIDEN_BLOCK", 48 * 33)
    monkeypatch.setattr(cross_entropy, "BLOCK_V", 64)
    if request.param == "interpreter":
        return "cpu", triton_on_cpu
    if request.param == "cpu in tiles" and not cpu.TILES:
        pytest.skip("this chip multiplies no bf16 in tiles")
    monkeypatch.setattr(cpu, "TILES", request.param == "cpu in tiles")
    monkeypatch.setattr(frozen_product, "TILED_ROWS", 1)
    return request.param.split()[0], contextlib.nullcontext


def make(
    n_tokens: int, dtype: torch.dtype, bias: bool, width: int = 48, words: int = 130
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(n_tokens)
    hidden = torch.randn(n_tokens, width, generator=generator).to(dtype)
    weight = (torch.randn(words, width, generator=generator) / 4).to(dtype)
    labels = torch.randint(words, (n_tokens,), generator=generator)
    labels[5::7] = -100
    return hidden, weight, labels, torch.randn(words, generator=generator).to(dtype) if bias else None


def run(
    backend: Backend, hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None, upstream: float
) -> tuple[Tensor, Tensor, Tensor]:
    device, entered = backend
    hidden = hidden.to(device).clone().requires_grad_()
    on_device = None if bias is None else bias.to(device)
    with entered():
        loss, n_correct = linear_cross_entropy(
            hidden, weight.to(device), labels.to(device), bias=on_device, count_correct=True
        )
        (grad,) = torch.autograd.grad(loss, hidden, torch.tensor(upstream, device=device))
    assert n_correct is not None
    return loss.detach().cpu(), n_correct.cpu(), grad.cpu()


# Tokens, upstream factor and bias: each of them at least once, in every dtype on every backend.
CASES = [(0, 1.0, True), (1, 65536 / 3, False), (63, 65536 / 3, True), (63, 1.0, False), (63, 2.0**-14, True)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_fp64(backend: Backend, case: tuple[int, float, bool], dtype: torch.dtype):
    n_tokens, upstream, bias = case
    if dtype == torch.bfloat16 and backend[1] is triton_on_cpu:
        pytest.skip("the interpreter cuts bf16 off instead of rounding")
    hidden, weight, labels, head_bias = make(n_tokens, dtype, bias)
    loss, n_correct, grad = run(backend, hidden, weight, labels, head_bias, upstream)
    exact = hidden.double().requires_grad_()
    want, want_correct = linear_cross_entropy_reference(
        exact, weight.double(), labels, None if head_bias is None else head_bias.double()
    )
    (want_grad,) = torch.autograd.grad(want, exact, torch.tensor(upstream, dtype=torch.float64))
    assert (loss.dtype, grad.dtype, n_correct.dtype) == (torch.float32, dtype, torch.int64)
    torch.testing.assert_close(loss.double(), want.detach(), rtol=1e-6, atol=0)
    assert n_correct == want_correct
    ignored = labels < 0
    assert (grad[ignored] == 0).all()
    # Values below the smallest normal of fp16 have an absolute rounding error, not a relative one.
    slack = 2.0**-25 * math.sqrt(grad.numel()) if dtype == torch.float16 else 0.0
    assert (grad.double() - want_grad).norm() <= TOLERANCE[dtype] * want_grad.norm() + slack


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("shape", random_shapes(12, 90, 90, 200), ids=str)
def test_random_shapes(backend: Backend, shape: tuple[int, int, int], dtype: torch.dtype):
    """A gradient of a few terms may be far smaller than they are; of one word it is 0."""
    n_tokens, width, words = shape
    hidden, weight, labels, bias = make(n_tokens, dtype, words % 2 == 0, width, words)
    loss, n_correct, grad = run(backend, hidden, weight, labels, bias, 16.0)
    exact, wide_bias = hidden.double().requires_grad_(), None if bias is None else bias.double()
    want, want_correct = linear_cross_entropy_reference(exact, weight.double(), labels, wide_bias)
    (want_grad,) = torch.autograd.grad(want, exact, torch.tensor(16.0, dtype=torch.float64))
    # each logit is good to so much; a loss and every factor of a gradient change by at most twice that
    logits = hidden.double().abs() @ weight.double().abs().t() + (0 if wide_bias is None else wide_bias.abs())
    error = 2 * logits.max() * width * 2**-24 + words * 2**-24
    assert abs(loss - want) <= 2 * error * (labels >= 0).sum()
    assert n_correct == want_correct
    kept = labels >= 0
    chances = torch.nn.functional.linear(hidden.double(), weight.double(), wide_bias).softmax(1)
    onehot = torch.zeros_like(chances).scatter_(1, labels.clamp(min=0)[:, None], 1.0)
    terms = 16 * (chances + onehot) @ weight.double().abs() * kept[:, None]
    rounded = 2 * torch.finfo(dtype).eps + 2 * error
    assert ((grad.double() - want_grad).abs() <= rounded * terms + torch.finfo(dtype).tiny).all()


def test_a_small_gradient_does_not_underflow_before_it_is_scaled(backend: Backend):
    """A word with p near 2^-30, far below fp16; the loss scale brings its gradient back."""
    hidden, weight = torch.zeros(1, 48).half(), torch.zeros(130, 48).half()
    hidden[0, 0], weight[7, 0], weight[3, 1] = 1.0, 21.0, 1.0
    _, _, grad = run(backend, hidden, weight, torch.tensor([7]), None, 65536.0)
    want = torch.tensor(65536 / (math.exp(21) + 129)).half()
    torch.testing.assert_close(grad[0, 1], want, rtol=2**-10, atol=0)


def test_a_token_of_no_probability(backend: Backend):
    """p of the label is 0 in fp32, its loss is 200."""
    hidden, weight = torch.zeros(2, 48), torch.zeros(130, 48)
    hidden[0, 0], weight[7, 0] = 1.0, 200.0
    loss, _, grad = run(backend, hidden, weight, torch.tensor([8, -100]), None, 1.0)
    assert loss == pytest.approx(200.0)
    assert grad[0, 0] == pytest.approx(200.0)
    assert (grad[1] == 0).all()


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
def test_nonfinite_hidden_states_are_not_hidden(backend: Backend, value: float):
    hidden, weight, labels, _ = make(63, torch.float32, False)
    hidden[62, 47] = value
    labels[62] = 1
    loss, _, grad = run(backend, hidden, weight, labels, None, 1.0)
    assert loss.isnan()
    assert grad[62].isnan().all()
    assert grad[:62].isfinite().all()


def test_the_same_bits_twice(backend: Backend):
    arguments = make(63, torch.float16, True)
    first, second = run(backend, *arguments, 7.0), run(backend, *arguments, 7.0)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_chunks_do_not_change_the_sum(backend: Backend, monkeypatch: pytest.MonkeyPatch):
    arguments = make(63, torch.float32, False)
    many = run(backend, *arguments, 1.0)
    for name in ("CPU_CHUNK", "CUDA_CHUNK"):
        monkeypatch.setattr(cross_entropy, name, 1 << 20)
    one = run(backend, *arguments, 1.0)
    torch.testing.assert_close(many, one, rtol=1e-6, atol=1e-7)


def test_no_gradient_is_made_for_evaluation(backend: Backend):
    device, entered = backend
    hidden, weight, labels, _ = make(63, torch.float32, False)
    with entered(), torch.no_grad():
        loss, n_correct = linear_cross_entropy(hidden.to(device), weight.to(device), labels.to(device))
        out = _linear_cross_entropy(
            hidden.to(device), weight.to(device), labels.to(device), None, torch.float32, False, False
        )
    assert n_correct is None
    assert out[2].shape == (0, 48)
    want, _ = linear_cross_entropy_reference(hidden.double(), weight.double(), labels)
    torch.testing.assert_close(loss.cpu().double(), want, rtol=1e-6, atol=0)


def test_autocast_gives_the_gradient_in_the_dtype_of_hidden(backend: Backend):
    device, entered = backend
    hidden, weight, labels, _ = make(63, torch.float32, False)
    hidden = hidden.to(device).requires_grad_()
    with entered(), torch.autocast(device, dtype=torch.float16):
        loss, _ = linear_cross_entropy(hidden, weight.to(device), labels.to(device))
        (grad,) = torch.autograd.grad(loss, hidden)
    exact = hidden.detach().cpu().double().requires_grad_()
    want, _ = linear_cross_entropy_reference(exact, weight.double(), labels)
    (want_grad,) = torch.autograd.grad(want, exact)
    assert grad.dtype == torch.float32
    torch.testing.assert_close(loss.detach().cpu().double(), want.detach(), rtol=1e-3, atol=0)
    assert (grad.cpu().double() - want_grad).norm() <= 2**-9 * want_grad.norm()


def test_losses_of_tokens_add_up_to_the_loss(backend: Backend):
    device, entered = backend
    hidden, weight, labels, bias = make(63, torch.float32, True)
    assert bias is not None
    with entered(), torch.no_grad():
        arguments = (hidden.to(device), weight.to(device), labels.to(device))
        loss, _, losses = token_cross_entropy(*arguments, bias=bias.to(device), count_correct=True)
        silent = token_cross_entropy(*arguments, bias=bias.to(device))
    assert torch.equal(silent[0], loss)
    assert torch.equal(silent[2], losses)
    logits = torch.nn.functional.linear(hidden.double(), weight.double(), bias.double())
    want = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    assert losses[5] == 0
    torch.testing.assert_close(losses.cpu().double(), want, rtol=1e-5, atol=1e-6)
    assert losses.sum(dtype=torch.float64).float() == loss


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
def test_opcheck(dtype: torch.dtype):
    hidden, weight, labels, bias = make(9, dtype, True)
    arguments = (hidden.requires_grad_(), weight, labels, bias, dtype, True, True)
    torch.library.opcheck(_linear_cross_entropy, arguments)


def test_compiles_in_one_graph():
    hidden, weight, labels, _ = make(9, torch.float32, False)
    compiled = torch.compile(linear_cross_entropy, backend="aot_eager", fullgraph=True)
    grads = []
    for function in (linear_cross_entropy, compiled):
        leaf = hidden.clone().requires_grad_()
        loss, _ = function(leaf, weight, labels)
        grads.append(torch.autograd.grad(loss * 3, leaf)[0])
    assert torch.equal(*grads)


def test_logits_take_the_same_memory_at_every_call(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cross_entropy, "_held", threading.local())
    hidden, weight, labels, _ = make(63, torch.float32, bias=False)
    places = set()
    softmax = torch.softmax
    monkeypatch.setattr(torch, "softmax", lambda x, **kw: places.add(x.data_ptr()) or softmax(x, **kw))
    losses = [float(linear_cross_entropy(hidden[:n], weight, labels[:n])[0]) for n in (63, 20, 63)]
    assert len(places) == 1
    assert losses[0] == losses[2]
    assert cross_entropy._held.room.numel() == cross_entropy.CPU_CHUNK
