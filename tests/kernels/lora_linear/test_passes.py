"""The passes of the CPU's LoRA linear against fp64: every shape, dtype and number of threads."""

import numpy
import pytest
import torch
from lora_train.kernels import cpu
from lora_train.kernels.lora_linear import passes as lora_passes
from lora_train.kernels.lora_linear.group import Dropout, Factor
from lora_train.kernels.statistics.tensor_stats_aten import round_with_stats_reference, tensor_stats_reference
from torch import Tensor

from ..helpers import DTYPES, assert_row

needs_c = pytest.mark.skipif(not cpu.AVAILABLE, reason="the C extension was not built")

# Rows, columns, rank: below and above a tile of 8 rows, vectors of 4, 8 and 16 values, sides of 4, shares of 64 rows.
SHAPES = [(0, 5, 3), (1, 1, 1), (7, 15, 4), (9, 33, 8), (64, 48, 24), (131, 71, 5), (513, 20, 2)]
SEED, P = torch.tensor([11]), 0.3


@pytest.fixture(params=["aten", "compiled"])
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """ATen, and the compiled loops."""
    if request.param == "aten":
        monkeypatch.setattr(cpu, "AVAILABLE", False)
    elif not cpu.AVAILABLE:
        pytest.skip("the C extension was not built")
    return request.param


def factors(m: int, c: int, r: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """X [M, C], R [r, C] and L [M, r], a slice of columns as one projection of a group has it."""
    generator = torch.Generator().manual_seed(m + c + r)
    x, right = torch.randn(m, c, generator=generator).to(dtype), torch.randn(r, c, generator=generator)
    return x, right, torch.randn(m, r + 3, generator=generator)[:, 2 : 2 + r]


def mask(x: Tensor) -> Tensor:
    """What dropout keeps of `x`."""
    return dropped_outer(torch.eye(len(x)), torch.ones(x.shape), SEED, P).double()


def dropped_outer(left: Tensor, x: Tensor, seed: Tensor | None, p: float) -> Tensor:
    """L^T dropout(X)."""
    return lora_passes.da(left, x, [left.shape[1]], Dropout(seed, p), [None])[0]


def parts(right: Tensor) -> list[Tensor]:
    """R as one projection has it, or as two of different rank."""
    return list(right.split([len(right) - 1, 1] if len(right) > 1 else [1]))


def new_rows(count: int) -> list[lora_passes.Row]:
    return list(numpy.full((count, 9), -1.0))


def assert_product(found: Tensor, left: Tensor, right: Tensor) -> None:
    """An fp32 product, with an error of a few units of what its absolute values add up to."""
    bound = 4e-7 * (left.double().abs() @ right.double().abs()) + 1e-30
    assert found.dtype == torch.float32
    assert ((found.double() - left.double() @ right.double()).abs() <= bound).all()


def assert_gradient_row(row: lora_passes.Row, x: Tensor) -> None:
    """That of an fp32 tensor that nobody rounded."""
    expected = tensor_stats_reference(x, full=False)
    expected[4:6] = 0
    assert_row(torch.from_numpy(row), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("p", [0.0, P])
def test_down_and_da(variant: str, shape: tuple[int, int, int], dtype: torch.dtype, p: float):
    x, right, left = factors(*shape, dtype)
    kept = x.double() * (mask(x) if p else 1)
    lora_A, scales = parts(right), [0.5, 3.0][: len(parts(right))]
    h, wide = lora_passes.down(x, lora_A, scales, Dropout(SEED, p))
    assert torch.equal(wide, x.float())
    scaled = torch.cat([a.double() * scale for a, scale in zip(lora_A, scales, strict=True)])
    assert_product(h, kept, scaled.t())
    rows = new_rows(len(lora_A))
    found = lora_passes.da(left.contiguous(), x, [len(a) for a in lora_A], Dropout(SEED, p), rows)
    assert [part.shape for part in found] == [a.shape for a in lora_A]
    assert all(part.is_contiguous() for part in found)
    assert_product(torch.cat(found), left.t(), kept)
    for part, row in zip(found, rows, strict=True):
        assert_gradient_row(row, part)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_grad(variant: str, shape: tuple[int, int, int], dtype: torch.dtype):
    dy, right, h = factors(*shape, dtype)
    m, _, r = shape
    everyone, (row, db_row) = torch.full((m, r + 5), -1.0), new_rows(2)
    b = right.t().contiguous()
    wide, db, finite = lora_passes.grad(dy, h, (b, 0.7), everyone[:, 1 : 1 + r], (row, db_row, None, 0))
    assert finite
    assert torch.equal(wide, dy.float())
    assert_product(everyone[:, 1 : 1 + r], dy, 0.7 * b.double())
    assert (everyone[:, 0] == -1).all()
    assert (everyone[:, 1 + r :] == -1).all()
    assert_product(db, dy.t(), h)
    assert db.is_contiguous()
    assert_row(torch.from_numpy(row), tensor_stats_reference(dy, full=False))
    assert_gradient_row(db_row, db)
    for value in (torch.inf, -torch.inf, torch.nan):
        for place in [(0, 0), (m - 1, r - 1)] if m else []:
            spoiled = h.clone()
            spoiled[place] = value
            assert not lora_passes.grad(dy, spoiled, (b, 0.7), everyone[:, :r], (None, None, None, 0))[2]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("p", [0.0, P])
def test_up(variant: str, shape: tuple[int, int, int], dtype: torch.dtype, p: float):
    acc, right, h = factors(*shape, torch.float32)
    acc, (row,) = acc * 3e4, new_rows(1)
    m, c, _ = shape
    kept = mask(acc) if p else torch.ones(m, c).double()
    exact = acc.double() + kept * (h.double() @ right.double())
    before, transposed = acc.clone(), acc.clone()
    y = lora_passes.up(acc, h, Factor(parts(right), across=False), dtype, row, Dropout(SEED, p))
    assert ((acc - exact).abs() <= 4e-7 * (before.abs() + h.abs() @ right.abs())).all()
    stored, expected = round_with_stats_reference(acc, dtype)
    assert y.dtype == dtype
    assert torch.equal(y, stored)
    if dtype == torch.float32:
        expected = tensor_stats_reference(y, full=False)
        expected[4:6] = 0
    assert_row(torch.from_numpy(row), expected)
    if dtype == torch.float16 and acc.numel() > 100:
        assert row[4] > 0
    assert torch.equal(lora_passes.up(before, h, Factor(parts(right), across=False), dtype, None, Dropout(SEED, p)), y)
    across = Factor([part.t().contiguous() for part in parts(right)], across=True)
    assert torch.equal(lora_passes.up(transposed, h, across, dtype, None, Dropout(SEED, p)), y)


@needs_c
@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_do_not_change_the_bits(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    x, right, h = factors(5000, 40, 8, dtype)
    results = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        g, acc, rows = torch.empty(5000, 8), x.float() * 3, new_rows(4)
        found = [*lora_passes.down(x, [right], [1.0], Dropout(SEED, P))]
        found += [*lora_passes.grad(x, h, (right.t().contiguous(), 1.0), g, (rows[0], rows[1], None, 0))[:2], g]
        found += lora_passes.da(g, x, [3, 5], Dropout(SEED, P), [None, rows[2]])
        found += [lora_passes.up(acc, h, Factor([right], across=False), dtype, rows[3], Dropout(SEED, P))]
        results.append([*found, *(torch.from_numpy(row).nan_to_num(-1) for row in rows)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs_c
def test_a_value_that_is_not_finite_stays_where_it_is():
    """In its row of H and of Y, and in its column of dA; a dropped one is gone."""
    x, right, h = factors(70, 48, 4, torch.float32)
    x[66, 40], x[3, 2] = torch.inf, torch.nan
    kept = mask(x)
    rows = sorted(row for row, column in ((66, 40), (3, 2)) if kept[row, column])
    found = lora_passes.down(x, [right], [1.0], Dropout(SEED, P))[0]
    assert (~found.isfinite()).any(1).nonzero().flatten().tolist() == rows
    assert (~dropped_outer(h.contiguous(), x, None, 0.0).isfinite()).any(0).nonzero().flatten().tolist() == [2, 40]
    y = lora_passes.up(x.clone(), h, Factor([right], across=False), torch.float32, None)
    assert (~y.isfinite()).nonzero().tolist() == [[3, 2], [66, 40]]


@needs_c
def test_what_two_seeds_drop_is_independent():
    """The share that both drop is p^2, for neighbouring seeds and when one mask is moved against the other."""
    n, p = 1_000_000, 0.3
    ones, eye = torch.ones(100, n // 100), torch.eye(100)
    a, b = (dropped_outer(eye, ones, torch.tensor([seed]), p).flatten() == 0 for seed in (41, 42))
    limit = 5 * (p * p * (1 - p * p) / n) ** 0.5
    for shift in (0, 1, 2, 8, 576):
        assert abs((a[shift:] & b[: n - shift]).double().mean().item() - p * p) < limit
        if shift:
            assert abs((a[shift:] & a[: n - shift]).double().mean().item() - p * p) < limit


@pytest.mark.parametrize("scale", [1e-30, 1e-21, 1e-13, 1.0, 1e12, 1e25, 0.0])
@pytest.mark.parametrize("shape", [(3, 16, 576), (2, 8, 11008), (5, 1, 1), (1, 3, 17), (4, 16, 192), (2, 16, 4099)])
def test_squares_of_pieces(shape: tuple[int, int, int], scale: float):
    """Wherever fp32 ends; each piece is a slice of a wider one, as several projections' are."""
    generator = torch.Generator().manual_seed(shape[2])
    n, rows, cols = shape
    pieces = scale * torch.randn(n, 3 * rows, cols, generator=generator)
    own, into = pieces.split(rows, dim=1)[1], torch.full((n, 2), -1.0, dtype=torch.float64)
    lora_passes._write_squares(own, into[:, 1])
    torch.testing.assert_close(into[:, 1], own.double().square().sum((1, 2)), rtol=1e-7, atol=0)
    assert into[:, 0].tolist() == [-1.0] * n
    own[0, 0, 0] = torch.inf
    lora_passes._write_squares(own, into[:, 1])
    assert into[0, 1] == torch.inf
    assert bool(into[1:, 1].isfinite().all())
