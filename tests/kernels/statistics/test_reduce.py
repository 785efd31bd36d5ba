import pytest
import torch
from lora_train.kernels.backend import triton_on_cpu
from lora_train.kernels.statistics.reduce import (
    FIELDS,
    N_FIELDS,
    N_PARTIALS,
    reduce_partials,
    reduce_partials_reference,
    reduce_ragged_partials,
)


def partials(*shape: int) -> torch.Tensor:
    """Partials of `shape` programs: sums of squares with fractions, counts that are large integers."""
    generator = torch.Generator().manual_seed(7)
    values = torch.randint(0, 2**40, (*shape, N_PARTIALS), generator=generator).double()
    values[..., :2] = torch.rand((*shape, 2), generator=generator, dtype=torch.float64)
    return values


def reduced(values: torch.Tensor, n: int, device: str, backend: str) -> torch.Tensor:
    if backend == "triton" and device == "cpu":
        with triton_on_cpu():
            return reduce_partials(values, n)
    return reduce_partials(values.to(device), n).cpu()


def test_fields_are_those_of_the_design():
    assert FIELDS == (
        "sumsq",
        "absmax",
        "n_nan",
        "n_inf",
        "n_overflow",
        "n_underflow",
        "n_subnormal",
        "n_zero",
        "n",
    )
    assert N_FIELDS == 9


@pytest.mark.parametrize("backend", ["triton", "cpu"])
@pytest.mark.parametrize("shape", [(0,), (1,), (127,), (128,), (431,), (3, 129), (2, 3, 5), (0, 4)])
def test_rows_are_exact_sums_and_maxima(backend: str, shape: tuple[int, ...], triton_device: str):
    values = partials(*shape)
    row = reduced(values, 123_456_789_012, triton_device, backend)
    expected = reduce_partials_reference(values, 123_456_789_012)
    assert row.shape == (*shape[:-1], N_FIELDS)
    assert torch.equal(row[..., 1:], expected[..., 1:])
    torch.testing.assert_close(row[..., 0], expected[..., 0], rtol=1e-14, atol=0)


@pytest.mark.parametrize("backend", ["triton", "cpu"])
def test_null_survives_and_stays_in_its_column(backend: str, triton_device: str):
    values = partials(300)
    values[:, 4] = float("nan")
    values[299, 7] = float("nan")
    row = reduced(values, 1, triton_device, backend)
    assert row.isnan().tolist() == [field in ("n_overflow", "n_zero") for field in FIELDS]


@pytest.mark.parametrize("backend", ["triton", "cpu"])
def test_same_bits_twice(backend: str, triton_device: str):
    values = partials(431)
    first, second = (reduced(values, 9, triton_device, backend) for _ in range(2))
    assert torch.equal(first, second)


def test_ragged_rows(triton_device: str):
    values = partials(300)
    first = torch.tensor([0, 1, 1, 290, 300])
    n = torch.tensor([5, 0, 2**40, 7])
    rows = reduce_ragged_partials(values.to(triton_device), first.to(triton_device), n.to(triton_device)).cpu()
    for t in range(4):
        expected = reduce_partials_reference(values[first[t] : first[t + 1]], int(n[t]))
        torch.testing.assert_close(rows[t], expected, rtol=1e-14, atol=0)
