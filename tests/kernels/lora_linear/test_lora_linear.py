"""The fused LoRA linear against fp64: outputs, gradients and every row of its slot, on every backend."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch._dynamo.testing
import torch.utils.checkpoint
from lora_train.kernels.lora_linear import NF4Weight, lora_linear, site_names
from lora_train.kernels.lora_linear.ops import cast_with_stats, lora_linear_op
from lora_train.kernels.lora_linear.reference import Watched, slot_reference
from lora_train.kernels.operators import store
from lora_train.kernels.statistics.reduce import FIELDS
from torch import Tensor

from .lora_layer import (
    Backend,
    Layer,
    Result,
    assert_near,
    assert_slot,
    check,
    magnitudes,
    make_layer,
    run,
    run_reference,
    tolerances,
)

INF, NAN = math.inf, math.nan
N_NAN, N_INF, N_OVERFLOW, N_UNDERFLOW = (FIELDS.index(f) for f in ("n_nan", "n_inf", "n_overflow", "n_underflow"))

# Every M, rank and odd size at least once, with and without a bias, alone and in groups of unequal N and
# rank.
CASES = [
    (0, 48, (72,), (8,), True),
    (1, 72, (48,), (1,), False),
    (63, 48, (72,), (4,), True),
    (123, 130, (48,), (8,), False),
    (63, 72, (130,), (16,), True),
    (123, 48, (130,), (33,), False),
    (63, 130, (72,), (64,), True),
    (63, 72, (48,), (100,), False),
    (63, 48, (72,), (256,), False),
    (123, 72, (72, 48, 130), (8, 8, 8), True),
    (63, 48, (48, 72), (16, 33), True),
    (0, 48, (48, 72), (4, 4), False),
    # one of everything
    (1, 1, (1,), (1,), True),
    (17, 1, (1, 5), (1, 2), False),
    # more projections than one launch serves, and than two
    (40, 48, (24, 8, 40, 8, 16), (4, 1, 8, 2, 4), True),
    (9, 16, (8, 1, 8, 1, 8, 1, 8, 1, 8), (2, 1, 2, 1, 2, 1, 2, 1, 2), False),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_everything_against_fp64(backend: Backend, case: Any, dtype: torch.dtype):
    m, k, ns, ranks, bias = case
    layer = make_layer(m, k, ns, ranks, dtype, bias)
    check(backend, layer, run(backend, layer))


@pytest.mark.parametrize("m", [1, 123])
def test_bf16_on_the_cpu(m: int):
    """The interpreter cuts bf16 off instead of rounding, so only the CPU path is held to it."""
    backend = Backend("cpu", "cpu", contextlib.nullcontext, sees_accumulator=True, tf32=False)
    layer = make_layer(m, 48, (72, 130), (8, 4), torch.bfloat16, True)
    check(backend, layer, run(backend, layer))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("p", [0.05, 0.5])
def test_dropout_is_the_mask_of_its_seed(backend: Backend, dtype: torch.dtype, p: float):
    """With the mask that the seed stands for, all is as in fp64: forward and backward drew the same."""
    layer = make_layer(63, 130, (48, 72), (8, 33), dtype, True)
    seed = torch.tensor([1234])
    keep = backend.keep(layer.x, seed, p)
    assert not torch.equal(keep, backend.keep(layer.x, seed + 1, p))
    check(backend, layer, run(backend, layer, p, seed), p, keep)


@pytest.mark.parametrize("p", [0.01, 0.1, 0.7])
def test_dropout_drops_each_element_with_its_probability(backend: Backend, p: float):
    """Rate over all elements within 5 standard deviations, and of every row and column within 6."""
    x = torch.empty(200, 130)
    dropped = ~backend.keep(x, torch.tensor([7]), p)
    for rate, n, sigmas in (
        (dropped.double().mean(), x.numel(), 5),
        (dropped.double().mean(0), 200, 6),
        (dropped.double().mean(1), 130, 6),
    ):
        assert ((rate - p).abs() <= sigmas * math.sqrt(p * (1 - p) / n) + 1 / n).all()


def row(result: Result, site: str) -> dict[str, float]:
    index = [name for name, _ in site_names(1)].index(site)
    return dict(zip(FIELDS, result.slot[index].tolist(), strict=True))


def threshold_layer(grad_side: bool) -> Layer:
    """fp16 products next to every threshold, exact in fp32: a + b / 2 + c / 4096 of each row."""
    rows = [
        (65504.0, 31.984375, 0.0),  # 65519.99 rounds to 65504
        (65504.0, 32.0, 0.0),  # 65520 rounds to infinity
        (-65504.0, -32.0, 0.0),
        (2.0**-24, -(2.0**-23), 0.0),  # 0, and nothing is lost
        (0.0, 0.0, 2.0**-13 * (1 + 2.0**-10)),  # above 2^-25 rounds to 2^-24
        (0.0, 0.0, -(2.0**-13)),  # 2^-25 rounds to 0
    ]
    weight = torch.tensor(rows, dtype=torch.float64).half()
    m, (n, k) = 3, weight.shape
    side = torch.zeros(m, k).half()
    side[1] = torch.tensor([1.0, 0.5, 2.0**-12])
    ones = torch.ones(m, n).half()
    if grad_side:
        weight = weight.t().contiguous()
    return Layer(
        x=ones if grad_side else side,
        weights=[weight],
        lora_A=[torch.zeros(1, weight.shape[1])],
        lora_B=[torch.zeros(weight.shape[0], 1)],
        scalings=[1.0],
        biases=[None],
        grads=[side if grad_side else ones],
    )


@pytest.mark.parametrize("grad_side", [False, True], ids=["out", "grad_in"])
def test_overflow_and_underflow_at_their_thresholds(backend: Backend, grad_side: bool):
    result = run(backend, threshold_layer(grad_side))
    values = (result.dx if grad_side else result.ys[0])[1].tolist()
    assert values == [65504.0, INF, -INF, 0.0, 2.0**-24, 0.0]
    found = row(result, "grad_in" if grad_side else "out")
    assert found["n_overflow"] == 2
    if backend.sees_accumulator:
        assert found["n_underflow"] == 1
    else:
        assert math.isnan(found["n_underflow"])


def test_overflow_of_the_lora_part(backend: Backend):
    """A base product that fits and a LoRA part that fits may still not fit together."""
    layer = make_layer(1, 48, (72,), (1,), torch.float16)
    layer.x.zero_()
    layer.x[0, 0] = 1
    layer.weights[0][:, 0] = 65504
    layer.lora_A[0][:] = 1
    layer.lora_B[0][:] = 8
    layer.lora_B[0][71] = 7.75  # s = 2: 15.5 more than 65504 still rounds down
    found = row(run(backend, layer), "out")
    assert (found["n_overflow"], found["n_inf"], found["absmax"]) == (71, 71, 65504)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize(
    ("value", "field", "place"),
    [
        (NAN, "n_nan", (0, 0)),
        (NAN, "n_nan", (62, 47)),
        (NAN, "n_nan", (31, 46)),
        (INF, "n_inf", (62, 47)),
        (-INF, "n_inf", (0, 0)),
    ],
    ids=str,
)
def test_nonfinite_input_is_not_the_modules_fault(
    backend: Backend, dtype: torch.dtype, value: float, field: str, place: tuple[int, int]
):
    layer = make_layer(63, 48, (72,), (8,), dtype)
    layer.x[place] = value
    result = run(backend, layer)
    assert row(result, "in") | {"n": 0} == pytest.approx(
        dict.fromkeys(FIELDS, NAN) | {"n_nan": 0, "n_inf": 0, field: 1, "n": 0}, nan_ok=True
    )
    out = row(result, "out")
    assert out["n_nan"] + out["n_inf"] == 72
    if dtype == torch.float32 or backend.sees_accumulator:
        assert out["n_overflow"] == 0
    else:
        assert math.isnan(out["n_overflow"])
    assert row(result, "grad_in")["n_nan"] == 0
    assert row(result, "grad_in")["n_overflow"] == 0


@pytest.mark.parametrize("place", [(0, 0), (62, 71), (31, 70)], ids=str)
@pytest.mark.parametrize("value", [NAN, INF], ids=str)
def test_nonfinite_grad_out_is_not_the_modules_fault(backend: Backend, value: float, place: tuple[int, int]):
    layer = make_layer(63, 48, (72, 130), (8, 4), torch.float16)
    layer.grads[0][place] = value
    result = run(backend, layer)
    expected = run_reference(layer)
    known = backend.sees_accumulator
    slot = slot_reference(
        Watched(layer.x, result.ys, layer.grads, result.dx, result.dA, result.dB),
        expected.ys if known else None, expected.dx if known else None,
    )  # fmt: skip
    assert_slot(result.slot, slot, 2)
    bad = (~result.dx.isfinite()).any(1).nonzero().flatten().tolist()
    assert bad == [place[0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
def test_statistics_change_nothing_and_repeat_to_the_bit(backend: Backend, dtype: torch.dtype):
    layer = make_layer(63, 48, (72, 130), (8, 33), dtype, True)
    seed = torch.tensor([5])
    first, second = (run(backend, layer, 0.1, seed) for _ in range(2))
    off = run(backend, layer, 0.1, seed, with_slot=False)
    assert torch.equal(first.slot.nan_to_num(-1), second.slot.nan_to_num(-1))
    assert (off.slot == -1).all()
    for a, b, c in zip(first.tensors(), second.tensors(), off.tensors(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_the_first_layer_has_no_grad_in(backend: Backend):
    layer = make_layer(63, 48, (72,), (8,), torch.float32)
    lora_A = layer.lora_A[0].to(backend.device).clone().requires_grad_()
    slot = torch.zeros(6, len(FIELDS), dtype=torch.float64, device=backend.device)
    with backend.entered():
        (y,) = lora_linear(
            layer.x.to(backend.device),
            [w.to(backend.device) for w in layer.weights],
            [lora_A],
            [b.to(backend.device) for b in layer.lora_B],
            layer.scalings,
            slot=slot,
        )
        y.backward(layer.grads[0].to(backend.device))
    assert slot[3].isnan().all()
    found, wanted = lora_A.grad.cpu(), run_reference(layer).dA[0]  # type: ignore[union-attr]
    assert_near(found, wanted, magnitudes(layer, 0.0, None).dA[0], tolerances(backend, layer)[1])


def test_an_unused_projection_gets_zero_gradients(backend: Backend):
    layer = make_layer(63, 48, (72, 48), (8, 8), torch.float32)
    lora_B = [b.to(backend.device).clone().requires_grad_() for b in layer.lora_B]
    with backend.entered():
        ys = lora_linear(
            layer.x.to(backend.device),
            [w.to(backend.device) for w in layer.weights],
            [a.to(backend.device) for a in layer.lora_A],
            lora_B,
            layer.scalings,
        )
        ys[0].sum().backward()
    assert lora_B[0].grad.abs().sum() > 0  # type: ignore[union-attr]
    assert (lora_B[1].grad == 0).all()  # type: ignore[union-attr]


def test_autocast_counts_what_its_cast_does(backend: Backend):
    """fp32 input under autocast: the cast to fp16 is in row 0, and the gradient comes back in fp32."""
    layer = make_layer(63, 48, (72,), (8,), torch.float32)
    layer.x[0, 0], layer.x[0, 1], layer.x[62, 47], layer.x[1, 1] = 65520.0, 1e-9, 2.0**-25, 65519.0
    x = layer.x.to(backend.device).requires_grad_()
    slot = torch.zeros(6, len(FIELDS), dtype=torch.float64, device=backend.device)
    with backend.entered(), torch.autocast(backend.device, dtype=torch.float16):
        (y,) = lora_linear(
            x,
            [w.to(backend.device) for w in layer.weights],
            [a.to(backend.device) for a in layer.lora_A],
            [b.to(backend.device) for b in layer.lora_B],
            layer.scalings,
            slot=slot,
        )
        y.sum().backward()
    found = dict(zip(FIELDS, slot[0].tolist(), strict=True))
    assert (found["n_overflow"], found["n_underflow"], found["n_inf"], found["n_zero"]) == (1, 2, 1, 2)
    assert (y.dtype, x.grad.dtype) == (torch.float16, torch.float32)  # type: ignore[union-attr]


def test_nf4_is_its_decoded_weight(backend: Backend):
    functional = pytest.importorskip("bitsandbytes.functional")
    layer = make_layer(63, 64, (72, 48), (8, 8), torch.float16)
    packed, dense = [], []
    for weight in layer.weights:
        data, state = functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
        dense.append(functional.dequantize_4bit(data, state).half())
        nested = (state.state2.absmax, state.state2.code, state.offset)
        nf4 = NF4Weight(data, state.absmax, state.code, state.blocksize, *nested, state.state2.blocksize)
        packed.append(nf4)
    want = run(backend, Layer(**{**vars(layer), "weights": dense}))
    x = layer.x.to(backend.device).requires_grad_()
    for weight in packed:
        for name, value in vars(weight).items():
            if isinstance(value, Tensor):
                object.__setattr__(weight, name, value.to(backend.device))
    with backend.entered():
        ys = lora_linear(
            x,
            packed,
            [a.to(backend.device) for a in layer.lora_A],
            [b.to(backend.device) for b in layer.lora_B],
            layer.scalings,
        )
        torch.autograd.backward(ys, [grad.to(backend.device) for grad in layer.grads])
    for y, expected in zip(ys, want.ys, strict=True):
        assert torch.equal(y.cpu(), expected)
    assert torch.equal(x.grad.cpu(), want.dx)  # type: ignore[union-attr]


def op_arguments(dtype: torch.dtype, slot: bool, p: float) -> tuple:
    layer = make_layer(5, 16, (24, 8), (4, 2), dtype, True)
    return (
        layer.x.requires_grad_(),
        layer.weights,
        [torch.empty(0, dtype=dtype) if b is None else b for b in layer.biases],
        [a.requires_grad_() for a in layer.lora_A],
        [b.requires_grad_() for b in layer.lora_B],
        torch.tensor([3]) if p else None,
        torch.zeros(10, len(FIELDS), dtype=torch.float64) if slot else None,
        torch.zeros(2, 4, dtype=torch.float64) if slot else None,
        [1, 0, 0, 1, 0, 0],
        layer.scalings,
        p,
        [0, 3, 5] if slot else [0],
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize(("slot", "p"), [(True, 0.0), (True, 0.1), (False, 0.1)])
def test_opcheck(dtype: torch.dtype, slot: bool, p: float, null_equals_null: None):
    torch.library.opcheck(lora_linear_op, op_arguments(dtype, slot, p))


def test_opcheck_of_store_and_cast():
    torch.library.opcheck(store, (torch.zeros(2, 9), torch.ones(2, 9)))
    torch.library.opcheck(cast_with_stats, (torch.randn(5, 3, requires_grad=True), torch.float16))


class Module(torch.nn.Module):
    """A LoRA linear as a model holds it: the slot is a view of one buffer, the seed a tensor of its own."""

    def __init__(self, slot: Tensor, seed: int) -> None:
        super().__init__()
        layer = make_layer(1, 16, (16,), (4,), torch.float32)
        self.weight = torch.nn.Parameter(layer.weights[0] + seed, requires_grad=False)
        self.lora_A = torch.nn.Parameter(layer.lora_A[0])
        self.lora_B = torch.nn.Parameter(layer.lora_B[0])
        self.slot, self.seed = slot, torch.tensor([seed])

    def forward(self, x: Tensor) -> Tensor:
        return lora_linear(
            x,
            [self.weight],
            [self.lora_A],
            [self.lora_B],
            [2.0],
            dropout_p=0.1,
            seed=self.seed,
            slot=self.slot,
        )[0]


@pytest.fixture
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_fresh_dynamo")
def test_twelve_layers_compile_once_and_change_nothing():
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    eager, compiled = (torch.full((12, 6, len(FIELDS)), -1.0, dtype=torch.float64) for _ in range(2))
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    forward = torch.compile(lambda module, x: module(x), backend=counter, fullgraph=True)
    for i in range(12):
        want, got = Module(eager[i], i), Module(compiled[i], i)
        y, z = want(x), forward(got, x)
        assert torch.equal(y, z)
        (a,) = torch.autograd.grad(y.square().sum(), want.lora_A)
        (b,) = torch.autograd.grad(z.square().sum(), got.lora_A)
        assert torch.equal(a, b)
    assert counter.frame_count == 1
    assert torch.equal(eager.nan_to_num(-2), compiled.nan_to_num(-2))
    assert (eager != -1).all()


def test_checkpointing_changes_neither_gradients_nor_statistics():
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    slots = torch.full((2, 2, 6, len(FIELDS)), -1.0, dtype=torch.float64)
    found = []
    for kept, slot in zip((True, False), slots, strict=True):
        first, second = Module(slot[0], 1), Module(slot[1], 2)

        def block(x: Tensor, first: Module = first, second: Module = second) -> Tensor:
            return second(torch.tanh(first(x)))

        y = block(x) if kept else torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False)
        parameters = [first.lora_A, first.lora_B, second.lora_A, second.lora_B]
        found.append([y, *torch.autograd.grad(y.square().sum(), [x, *parameters])])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert torch.equal(slots[0].nan_to_num(-2), slots[1].nan_to_num(-2))


def test_a_second_derivative_is_refused_and_not_silently_zero():
    x = torch.randn(4, 8, requires_grad=True)
    A, B = torch.randn(2, 8, requires_grad=True), torch.randn(6, 2, requires_grad=True)
    (y,) = lora_linear(x, [torch.randn(6, 8)], [A], [B], [1.0])
    (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()
