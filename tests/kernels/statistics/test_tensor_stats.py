"""Statistics against float64, on every backend: counts equal, norms to 1e-6, the same bits twice."""

import math
from collections.abc import Callable

import pytest
import torch
from lora_train.kernels import cpu
from lora_train.kernels.backend import triton_on_cpu
from lora_train.kernels.statistics import tensor_stats
from lora_train.kernels.statistics.tensor_stats import FIELDS
from lora_train.kernels.statistics.tensor_stats_aten import counts_small
from lora_train.kernels.statistics.tile_stats import flat

from ..helpers import DTYPES, INF, NAN, assert_row, random

# Around every edge: one value, a SIMD group, a piece of the C loop (512), a Triton tile (8192), two programs.
SIZES = (0, 1, 15, 63, 123, 431, 512, 8191, 8193, 20_001)

Stats = Callable[[torch.Tensor, bool], torch.Tensor]


@pytest.fixture(params=["aten", "c", "interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def stats(request: pytest.FixtureRequest) -> Stats:
    """One implementation of `tensor_stats(x, full)`."""
    if request.param == "aten":
        return tensor_stats.tensor_stats_aten
    if request.param == "c":
        if not cpu.AVAILABLE:
            pytest.skip("the C extension was not built")
        return lambda x, full: cpu.stats(flat(x), counts_small(x.dtype, full))
    if request.param == "cuda":
        return lambda x, full: tensor_stats.tensor_stats_triton(x.cuda(), full).cpu()

    def interpreted(x: torch.Tensor, full: bool) -> torch.Tensor:
        with triton_on_cpu():
            return tensor_stats.tensor_stats_triton(x, full)

    return interpreted


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
def test_random_values(stats: Stats, dtype: torch.dtype, n: int):
    x = random(n, dtype, seed=n)
    assert_row(stats(x, True), tensor_stats.tensor_stats_reference(x))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [63, 8193, 20_001])
def test_planted_values_at_the_ends(stats: Stats, dtype: torch.dtype, n: int):
    """Each special value first, last and in the middle; nothing past the end is counted."""
    tiny = torch.finfo(dtype).smallest_normal / 2
    x = random(n, dtype).abs() + 1
    for position, value in zip((0, 1, n // 2, n - 3, n - 2, n - 1), (NAN, -INF, -0.0, tiny, INF, NAN), strict=True):
        x[position] = value
    row = dict(zip(FIELDS, stats(x, True).tolist(), strict=True))
    assert (row["n_nan"], row["n_inf"], row["n_zero"], row["n_subnormal"], row["n"]) == (2, 2, 1, 1, n)
    assert math.isnan(row["n_overflow"])
    assert math.isnan(row["n_underflow"])
    assert_row(stats(x, True), tensor_stats.tensor_stats_reference(x))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [NAN, INF, -INF, 0.0, -0.0])
def test_nothing_but(stats: Stats, dtype: torch.dtype, value: float):
    x = torch.full((8193,), value, dtype=dtype)
    row = stats(x, True)
    assert_row(row, tensor_stats.tensor_stats_reference(x))
    assert row[:2].tolist() == [0, 0]


def test_small_values_of_fp32_are_null_unless_asked_for(stats: Stats):
    x = torch.tensor([0.0, 1e-40, 3.0])
    assert stats(x, False)[6:8].isnan().all()
    assert stats(x, True)[6:8].tolist() == [1, 1]
    assert stats(x.half(), False)[6:8].tolist() == [0, 2]
    assert stats(x.bfloat16(), False)[6:8].tolist() == [1, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_16_bit_pattern(stats: Stats, dtype: torch.dtype):
    x = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)
    assert_row(stats(x, True), tensor_stats.tensor_stats_reference(x))


@pytest.mark.parametrize("scale", [1e30, 3e38, 1e-19, 1e-30, 1e-38, 1e-44])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_squares_outside_the_fp32_range(stats: Stats, dtype: torch.dtype, scale: float):
    x = (torch.linspace(-1, 1, 9001) * scale).to(dtype)
    x[5] = INF
    assert_row(stats(x, True), tensor_stats.tensor_stats_reference(x))


@pytest.mark.parametrize("n", [786_432 + 63])
@pytest.mark.parametrize("kind", ["normal", "constant", "growing"])
def test_norm_of_many_values(stats: Stats, kind: str, n: int):
    x = {
        "normal": random(n, torch.float32),
        "constant": torch.full((n,), 0.1),
        "growing": torch.logspace(-8, 8, n),
    }[kind]
    assert_row(stats(x, True), tensor_stats.tensor_stats_reference(x))


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_strides(stats: Stats, dtype: torch.dtype):
    x = random(3 * 41 * 6, dtype).view(3, 41, 6)
    x[1, 2, 3] = NAN
    views = [x.mT, x.permute(2, 0, 1), x[:, ::2, 1:], x[0, 0, 0], x[:1].expand(4, 41, 6), x[:, :0]]
    for view in views:
        assert_row(stats(view, True), tensor_stats.tensor_stats_reference(view))


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_twice(stats: Stats, dtype: torch.dtype):
    x = random(20_001, dtype)
    assert torch.equal(stats(x, True)[:4], stats(x, True)[:4])


# Public function


def test_other_float_types():
    x = torch.tensor([[1.5, -448.0, 0.0, 2**-9]])
    row = tensor_stats.tensor_stats(x.to(torch.float8_e4m3fn))
    assert row[:4].tolist() == [1.5**2 + 448**2 + 2**-18, 448, 0, 0]
    assert row[6:].tolist() == [1, 1, 4]
    assert tensor_stats.tensor_stats(torch.tensor([1e100, NAN], dtype=torch.float64))[:3].tolist() == [
        1e200,
        1e100,
        1,
    ]


def test_overflow_of_a_product():
    x = torch.tensor([INF, -INF, NAN, 65504.0], dtype=torch.float16)
    overflow = FIELDS.index("n_overflow")
    assert tensor_stats.tensor_stats(x)[overflow].isnan()
    assert tensor_stats.tensor_stats(x, product_of_finite=True)[overflow] == 2
    assert tensor_stats.tensor_stats(x, product_of_finite=torch.tensor(True))[overflow] == 2
    row = tensor_stats.tensor_stats(x, product_of_finite=torch.tensor(False))
    assert row[overflow].isnan()
    assert row[:4].tolist() == [65504.0**2, 65504, 1, 2]


def test_operator_passes_opcheck(null_equals_null: None):
    for x in (random(431, torch.float32), random(64, torch.float16).view(8, 8).mT):
        torch.library.opcheck(tensor_stats._tensor_stats_op, (x, True))


def test_compiles_and_needs_no_gradient():
    @torch.compile(backend="aot_eager", fullgraph=True)
    def layer(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x * 2, tensor_stats.tensor_stats(x * 2)

    x = random(123, torch.float32).requires_grad_()
    y, row = layer(x)
    assert not row.requires_grad
    assert_row(row, tensor_stats.tensor_stats_reference(y))


@pytest.mark.gpu
def test_nothing_waits_for_the_device():
    tensors = [torch.randn(4096, device="cuda") for _ in range(3)]
    tensor_stats.multi_tensor_stats(tensors)
    tensor_stats.tensor_stats(tensors[0])
    torch.cuda.set_sync_debug_mode("error")
    try:
        tensor_stats.multi_tensor_stats(tensors)
        tensor_stats.tensor_stats(tensors[0], product_of_finite=torch.ones((), dtype=torch.bool, device="cuda"))
        tensor_stats.exponent_histogram(tensors[0])
    finally:
        torch.cuda.set_sync_debug_mode("default")
