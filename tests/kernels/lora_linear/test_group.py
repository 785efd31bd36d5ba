"""Squares of every example's LoRA gradient against float64, one example at a time."""

from __future__ import annotations

import random
from contextlib import nullcontext
from itertools import accumulate, pairwise

import pytest
import torch
from lora_train.kernels import cpu
from lora_train.kernels.cpu import LIMITS
from lora_train.kernels.lora_linear import Examples, lora_linear
from lora_train.kernels.lora_linear import passes as lora_passes
from lora_train.kernels.lora_linear.passes import outer
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from ..helpers import DTYPES
from .lora_layer import Backend, Layer, Result, make_layer, on_backend, run_reference

BACKENDS = ["cpu", "cpu without C", "interpreter", "interpreter sm_75", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Backend:
    return on_backend(request.param, monkeypatch)


class Sees(TorchDispatchMode):
    """Whoever looks at dispatched calls is given operators."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def starts_of(lengths: list[int]) -> list[int]:
    return [0, *accumulate(lengths)]


def part(layer: Layer, start: int, stop: int) -> Layer:
    """The layer with the tokens of one example alone."""
    grads = [grad[start:stop] for grad in layer.grads]
    return Layer(
        layer.x[start:stop], layer.weights, layer.lora_A, layer.lora_B, layer.scalings, layer.biases, grads
    )  # fmt: skip


def run(
    backend: Backend, layer: Layer, examples: Examples | None, p: float = 0.0, seed: int = 7
) -> tuple[list[torch.Tensor], torch.Tensor | None]:
    """Every dA and dB, and the squares, on the CPU."""
    lora = [t.to(backend.device).clone().requires_grad_() for t in (*layer.lora_A, *layer.lora_B)]
    g = len(layer.lora_A)
    if examples is not None and examples.squares is not None:
        examples = Examples(examples.starts, examples.squares.to(backend.device))
    with backend.entered():
        ys = lora_linear(
            layer.x.to(backend.device), [w.to(backend.device) for w in layer.weights], lora[:g], lora[g:],
            layer.scalings, dropout_p=p, seed=torch.tensor([seed], device=backend.device), examples=examples,
        )  # fmt: skip
        torch.autograd.backward(ys, [grad.to(backend.device) for grad in layer.grads])
    squares = None if examples is None or examples.squares is None else examples.squares.cpu()
    return [t.grad.cpu() for t in lora], squares  # type: ignore[union-attr]


def squares_of(result: Result) -> torch.Tensor:
    return torch.stack([grad.square().sum() for grad in (*result.dA, *result.dB)])


def random_layer(rng: random.Random, dtype: torch.dtype, lengths: list[int], projections: int = 4) -> Layer:
    ns = tuple(rng.choice([1, 3, 16, rng.randint(1, 70)]) for _ in range(rng.randint(1, projections)))
    ranks = tuple(rng.choice([1, 2, 4, 8, rng.randint(1, 40)]) for _ in ns)
    layer = make_layer(sum(lengths), rng.choice([1, 16, 33, 64]), ns, ranks, dtype)
    layer.biases = [None for _ in ns]
    return layer


def random_lengths(rng: random.Random, most: int) -> list[int]:
    """Examples of one token, of none, alike, and longer than a share."""
    kind = rng.randrange(4)
    if kind == 0:
        return [rng.choice([1, 16, 64])] * rng.randint(1, most // 64)
    if kind == 1:
        return [most]
    lengths = [rng.choice([0, 1, 2, 15, 16, 17, rng.randint(1, most // 4)]) for _ in range(rng.randint(1, 8))]
    return lengths if sum(lengths) else [1]


@pytest.mark.parametrize("dtype", DTYPES)
def test_squares_are_those_of_one_example_at_a_time(backend: Backend, dtype: torch.dtype):
    """1e-6 in fp32; where operands were rounded to TF32, whose unit is 2^-11, two of them each 2^-12 of it."""
    rng = random.Random(str(dtype))
    is_tf32 = backend.tf32 and dtype != torch.float32
    for _ in range(6 if backend.name.startswith("cpu") else 2):
        lengths = random_lengths(rng, 700 if backend.name.startswith("cpu") else 128)
        layer, p = random_layer(rng, dtype, lengths), rng.choice([0.0, 0.3])
        starts = starts_of(lengths)
        squares = torch.full((len(lengths), 2 * len(layer.weights)), -1.0, dtype=torch.float64)
        _, found = run(backend, layer, Examples(starts, squares), p)
        assert found is not None
        keep = backend.keep(layer.x, torch.tensor([7]), p) if p else None
        for e, (start, stop) in enumerate(pairwise(starts)):
            own, whole = part(layer, start, stop), None if keep is None else keep[start:stop]
            expected = squares_of(run_reference(own, p, whole))
            # of the terms' absolute values: a sum that cancels keeps what its terms were rounded by
            terms = magnitude(own, p, whole)
            assert ((found[e] - expected).abs() <= (1e-3 if is_tf32 else 1e-6) * terms).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("as_operator", [False, True])
def test_inner_products_are_those_of_an_example_and_the_sum(backend: Backend, dtype: torch.dtype, as_operator: bool):
    rng = random.Random(f"{dtype}{as_operator}")
    tolerance = 1e-3 if backend.tf32 and dtype != torch.float32 else 2e-6
    for _ in range(4 if backend.name.startswith("cpu") else 1):
        lengths = random_lengths(rng, 700 if backend.name.startswith("cpu") else 128)
        # more than four are several launches
        layer, p = random_layer(rng, dtype, lengths, projections=7), rng.choice([0.0, 0.3])
        starts, g = starts_of(lengths), len(layer.weights)
        alone, both = (torch.full((len(lengths), n), -1.0, dtype=torch.float64) for n in (2 * g, 2 * g + 1))
        with Sees() if as_operator else nullcontext():
            same, squares = run(backend, layer, Examples(starts, alone), p)
            gradients, found = run(backend, layer, Examples(starts, both), p)
        assert found is not None
        assert squares is not None
        assert torch.equal(found[:, :-1], squares)
        assert all(map(torch.equal, gradients, same))
        keep = backend.keep(layer.x, torch.tensor([7]), p) if p else None
        each = [(part(layer, *at), None if keep is None else keep[slice(*at)]) for at in pairwise(starts)]
        expected, terms = products(each), products([(absolute(own), mask) for own, mask in each])
        assert ((found[:, -1] - expected).abs() <= tolerance * terms).all()


def products(examples: list[tuple[Layer, torch.Tensor | None]]) -> torch.Tensor:
    """Of every example's gradients, one behind the other, with the sum of all."""
    results = [run_reference(own, 0.0 if mask is None else 0.3, mask) for own, mask in examples]
    each = torch.stack([torch.cat([grad.double().flatten() for grad in (*r.dA, *r.dB)]) for r in results])
    return each @ each.sum(0)


def magnitude(layer: Layer, p: float, keep: torch.Tensor | None) -> torch.Tensor:
    """Of every square the one of the sums of absolute values."""
    return squares_of(run_reference(absolute(layer), p, keep))


def absolute(layer: Layer) -> Layer:
    """The layer with absolute values."""
    return Layer(
        layer.x.abs(), layer.weights, [a.abs() for a in layer.lora_A], [b.abs() for b in layer.lora_B],
        layer.scalings, layer.biases, [grad.abs() for grad in layer.grads],
    )  # fmt: skip


def test_asking_changes_no_bit_and_twice_gives_the_same(backend: Backend):
    lengths = [40, 1, 0, 130, 16, 16, 16]
    layer = make_layer(sum(lengths), 48, (32, 24), (8, 4), torch.float16)
    squares = [torch.empty(len(lengths), 4, dtype=torch.float64) for _ in range(2)]
    silent, _ = run(backend, layer, Examples(starts_of(lengths)))
    first, found = run(backend, layer, Examples(starts_of(lengths), squares[0]))
    second, again = run(backend, layer, Examples(starts_of(lengths), squares[1]))
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(silent, first, second, strict=True))
    assert found is not None
    assert again is not None
    assert torch.equal(found, again)
    assert (found[2] == 0).all(), "an example without a token has no gradient"


def test_examples_add_up_to_the_gradient(backend: Backend):
    """Parts of one sign, so that the sum of them is as large as they are: |sum of G_e| is between both bounds."""
    lengths = [3, 70, 64, 1, 200]
    layer = make_layer(sum(lengths), 32, (16,), (4,), torch.float32)
    expected = run_reference(layer)
    grads, _ = run(backend, layer, Examples(starts_of(lengths)))
    whole, _ = run(backend, layer, None)
    n = sum(lengths)
    for grad, other, exact in zip(grads, whole, (*expected.dA, *expected.dB), strict=True):
        scale = exact.abs().max() * n * 2**-24 * 8
        assert (grad - exact).abs().max() <= scale
        assert (grad - other).abs().max() <= 2 * scale


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("lengths", [[5, 9, 7], [300, 400, 5], [64, 64, 64]])
def test_a_value_that_is_not_finite_is_in_its_own_example(backend: Backend, value: float, lengths: list[int]):
    if not backend.name.startswith("cpu"):
        lengths = [min(length, 40) for length in lengths]
    layer = make_layer(sum(lengths), 16, (8,), (2,), torch.float32)
    layer.grads[0][lengths[0] + 1, 3] = value
    _, found = run(backend, layer, Examples(starts_of(lengths), torch.empty(3, 2, dtype=torch.float64)))
    assert found is not None
    assert found.isfinite().all(1).tolist() == [True, False, True]


@pytest.mark.parametrize("scale", [1e-24, 1e-12, 1e16])
def test_squares_of_huge_and_tiny_gradients(backend: Backend, scale: float):
    """Their squares are beyond fp32; in double they are not."""
    lengths = [20, 33]
    layer = make_layer(sum(lengths), 32, (16,), (4,), torch.float32)
    layer.grads = [grad * scale for grad in layer.grads]
    _, found = run(backend, layer, Examples(starts_of(lengths), torch.empty(2, 2, dtype=torch.float64)))
    assert found is not None
    for e, (start, stop) in enumerate(pairwise(starts_of(lengths))):
        expected = squares_of(run_reference(part(layer, start, stop)))
        torch.testing.assert_close(found[e], expected, rtol=1e-5, atol=0.0)


def test_the_dispatchers_route_gives_the_same(backend: Backend):
    """The operators, as torch.compile and fake tensors see them."""
    lengths = [9, 30]
    layer = make_layer(sum(lengths), 16, (8, 8), (2, 4), torch.float32)
    _, found = run(backend, layer, Examples(starts_of(lengths), torch.empty(2, 4, dtype=torch.float64)))

    with Sees():
        _, seen = run(backend, layer, Examples(starts_of(lengths), torch.empty(2, 4, dtype=torch.float64)))
    assert found is not None
    assert seen is not None
    assert torch.equal(found, seen)


def test_fake_tensors_have_their_shapes():
    with FakeTensorMode(allow_non_fake_inputs=True):
        x, a, b = torch.empty(6, 4, requires_grad=True), torch.empty(2, 4), torch.empty(3, 2)
        squares = torch.empty(2, 2, dtype=torch.float64)
        (y,) = lora_linear(
            x, [torch.empty(3, 4)], [a.requires_grad_()], [b.requires_grad_()], [1.0],
            examples=Examples([0, 2, 6], squares),
        )  # fmt: skip
        y.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == (6, 4)


@pytest.mark.parametrize("starts", [[0, 5], [1, 6], [0, 4, 3, 6], [0]])
def test_starts_that_do_not_fit_are_refused(starts: list[int]):
    if not cpu.AVAILABLE:
        pytest.skip("the C extension was not built")
    layer = make_layer(6, 4, (3,), (2,), torch.float32)
    with pytest.raises(ValueError, match="starts do not go from 0 to the rows of x"):
        run(Backend("cpu", "cpu", torch.enable_grad, True, False), layer, Examples(starts))


def test_threads_change_no_bit():
    if not cpu.AVAILABLE:
        pytest.skip("the C extension was not built")
    rng, before = random.Random(3), torch.get_num_threads()
    backend = Backend("cpu", "cpu", torch.enable_grad, True, False)
    for _ in range(5):
        lengths = random_lengths(rng, 3000)
        layer = random_layer(rng, torch.float32, lengths)
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            squares = torch.empty(len(lengths), 2 * len(layer.weights), dtype=torch.float64)
            grads, squares = run(backend, layer, Examples(starts_of(lengths), squares))
            found.append([*grads, squares])
        torch.set_num_threads(before)
        assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_many_short_examples_make_no_more_shares_than_there_may_be():
    """Lengths that fill a share badly: whatever they are, the parts of G stay within what C allots."""
    if not cpu.AVAILABLE:
        pytest.skip("the C extension was not built")
    from lora_train.kernels.ledger import low_rank

    limits, rng = LIMITS["low_rank"], random.Random(1)
    for _ in range(50):
        lengths = [rng.choice([1, 65, 97, 129, 193, rng.randint(1, 400)]) for _ in range(rng.randint(1, 90))]
        m, k, rank = sum(lengths), 512, 8
        factor = 4 * k * rank
        most = factor * (limits["MAX_SHARES"] + 8) + 4 * k * 64 * limits["TILE"] + (1 << 14)
        assert low_rank((m, k, rank), 0, 1, examples=(starts_of(lengths), True)) <= most


def test_pieces_are_bounded_where_aten_computes_them(monkeypatch: pytest.MonkeyPatch):
    """With room for two pieces at once the sum and the squares stay what they are."""
    left, x = torch.randn(70, 6), torch.randn(70, 5)
    starts = [0, *range(10, 71, 10)]
    squares = [torch.empty(7, 2, dtype=torch.float64) for _ in range(2)]
    whole = outer(left, x, [2, 4], Examples(starts, squares[0]), 0)
    monkeypatch.setattr(lora_passes, "PIECES", 2 * 30)
    by_two = outer(left, x, [2, 4], Examples(starts, squares[1]), 0)
    assert torch.equal(squares[0], squares[1])
    torch.testing.assert_close(whole, by_two)
