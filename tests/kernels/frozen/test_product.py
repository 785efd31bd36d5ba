"""Products with a frozen weight against fp64, by the matrix library and in tiles."""

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from lora_train.kernels import cpu
from lora_train.kernels.frozen import product as frozen_product
from lora_train.kernels.frozen.product import multiplies_in_tiles, project, project_back
from torch import Tensor

from ..helpers import DTYPES, random_shapes

INF, NAN = math.inf, math.nan
needs_tiles = pytest.mark.skipif(not cpu.TILES, reason="this chip multiplies no bf16 in tiles")

# Largest error of a sum against the sum of its terms' magnitudes. The second plane of an fp16 is at most 2^-8 of it,
# and products of two are left out; that of an fp32 is cut off after another eight bits.
ADDITIONS = 4e-7
LEFT_OUT = {torch.float16: 2**-16, torch.float32: 2**-14, torch.bfloat16: 0.0}

# M, C, N: below, at and above tiles of 16, depths of 32, pairs of 32, shares of 128; blocks of 1,024 rows and terms.
SHAPES = [(1, 1, 1), (5, 33, 17), (16, 32, 32), (33, 31, 129), (70, 1100, 40), (1061, 40, 257), (40, 2050, 33)]
SHAPES += random_shapes(8, 90, 200, 90)


@pytest.fixture(params=["library", pytest.param("tiles", marks=needs_tiles)])
def in_tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether 16-bit weights are multiplied in tiles; else in blocks of at most 1,000 values."""
    monkeypatch.setattr(frozen_product, "TILED_ROWS", 1)
    monkeypatch.setattr(frozen_product, "WIDEN_BLOCK", 1000)
    monkeypatch.setattr(cpu, "TILES", request.param == "tiles")
    return request.param == "tiles"


def matrix(rows: int, cols: int, dtype: torch.dtype) -> Tensor:
    """Rows that lie three values further apart than they are long."""
    generator = torch.Generator().manual_seed(rows + cols)
    return torch.randn(rows, cols + 3, generator=generator).to(dtype)[:, :cols]


def assert_sum(found: Tensor, terms: list[tuple[Tensor, Tensor]], left_out: float) -> None:
    """That `found` is the sum of products, and of a bias or what was there, given as products with 1."""
    exact = sum(a.double() @ b.double() for a, b in terms)
    size = sum(a.double().abs() @ b.double().abs() for a, b in terms)
    assert found.dtype == torch.float32
    assert ((found.double() - exact).abs() <= (ADDITIONS + left_out) * size).all()


@pytest.mark.parametrize("weight_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_both_products(in_tiles: bool, shape: tuple[int, int, int], dtype: torch.dtype, weight_dtype: torch.dtype):
    m, c, n = shape
    x, weight, bias = matrix(m, c, dtype), matrix(n, c, weight_dtype), matrix(1, n, weight_dtype)[0]
    left_out = max(LEFT_OUT[dtype], LEFT_OUT[weight_dtype]) if in_tiles and weight_dtype != torch.float32 else 0.0
    ones = torch.ones(m, 1)
    assert_sum(project(x, weight), [(x, weight.t())], left_out)
    assert_sum(project(x, weight, bias), [(x, weight.t()), (ones, bias[None])], left_out)
    dy = matrix(m, n, dtype)
    assert_sum(project_back(dy, weight), [(dy, weight)], left_out)

    place = torch.full((m, n + 5), 7.0)
    assert project(x, weight, out=place[:, 2 : 2 + n]).data_ptr() == place[:, 2:].data_ptr()
    assert_sum(place[:, 2 : 2 + n], [(x, weight.t())], left_out)
    assert (place[:, :2] == 7).all()
    assert (place[:, 2 + n :] == 7).all()
    before = torch.randn(m, c, generator=torch.Generator().manual_seed(0))
    total = project_back(dy, weight, out=before.clone())
    assert_sum(total, [(dy, weight), (torch.eye(m), before)], left_out)


def test_the_library_gets_what_it_always_got(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cpu, "TILES", False)
    x, weight, dy = matrix(40, 60, torch.float16), matrix(50, 60, torch.float16), matrix(40, 50, torch.float16)
    assert torch.equal(project(x, weight), x.float() @ weight.float().t())
    assert torch.equal(project_back(dy, weight), dy.float() @ weight.float())


@needs_tiles
def test_who_goes_through_tiles(monkeypatch: pytest.MonkeyPatch):
    calls = []
    product = cpu.product
    monkeypatch.setattr(cpu, "product", lambda *args, **kw: calls.append(args[1].dtype) or product(*args, **kw))
    for dtype in DTYPES:
        x = matrix(32, 20, dtype)
        assert multiplies_in_tiles(x) == (dtype != torch.float32)
        assert not multiplies_in_tiles(x[:31])
        project(x, matrix(7, 20, dtype))
        project(x[:31], matrix(7, 20, dtype))
    assert calls == [torch.float16, torch.bfloat16]
    project_back(matrix(32, 7, torch.float32), matrix(7, 20, torch.float16))  # softmax(z) - onehot
    assert len(calls) == 3
    project(matrix(32, 20, torch.float16), matrix(20, 7, torch.float16).t())
    assert len(calls) == 3


@needs_tiles
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_infinities_and_nan_come_out_where_they_belong(dtype: torch.dtype):
    x, weight = matrix(64, 50, dtype).contiguous(), matrix(40, 50, dtype)
    x[3, 7], x[5, 11], x[63, 49] = INF, NAN, -INF
    weight[2, 7] = 0.0
    found, expected = project(x, weight), x.float() @ weight.float().t()
    assert torch.equal(found.isinf(), expected.isinf())
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found[~found.isfinite()].nan_to_num(), expected[~expected.isfinite()].nan_to_num())
    assert found[3].isinf().sum() == 39
    back = project_back(x, matrix(50, 50, dtype), out=torch.zeros(64, 50))
    assert torch.equal(back.isfinite().all(1), x.isfinite().all(1))


@needs_tiles
def test_a_weight_that_is_not_finite_is_not_hidden():
    x, weight = matrix(32, 20, torch.float16), matrix(7, 20, torch.float16)
    weight[3, 5] = INF
    finite = project(x, weight).isfinite()
    assert not finite[:, 3].any()
    assert finite[:, [0, 1, 2, 4, 5, 6]].all()


@needs_tiles
def test_subnormal_values_count_in_full():
    x = torch.full((32, 16), 2.0**-24, dtype=torch.float16)
    weight = torch.full((1, 16), 3 * 2.0**-24, dtype=torch.float16)
    assert (project(x, weight) == 16 * 3 * 2.0**-48).all()


@needs_tiles
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_threads_do_not_change_the_bits(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    x, weight = matrix(300, 1500, dtype), matrix(700, 1500, dtype)
    results = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        results.append((project(x, weight), project_back(matrix(300, 700, dtype), weight)))
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@needs_tiles
def test_two_products_at_once():
    x, weight = matrix(512, 700, torch.float16), matrix(600, 700, torch.float16)
    other = matrix(512, 600, torch.float16)
    expected = project(x, weight), project_back(other, weight)
    with ThreadPoolExecutor(2) as pool:
        for _ in range(10):
            first, second = pool.submit(project, x, weight), pool.submit(project_back, other, weight)
            assert torch.equal(first.result(), expected[0])
            assert torch.equal(second.result(), expected[1])
