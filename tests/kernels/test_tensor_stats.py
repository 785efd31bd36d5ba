"""Statistics against float64, on every backend: counts equal, norms to 1e-6, the same bits twice."""

import math
from collections.abc import Callable

import pytest
import torch
import triton
import triton.language as tl
from lora_train.kernels import cpu, tensor_stats
from lora_train.kernels.backend import jit, triton_on_cpu
from lora_train.kernels.reduce import reduce_partials
from lora_train.kernels.tensor_stats import FIELDS, N_PARTIALS

INF, NAN = math.inf, math.nan
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Around every edge: one value, a SIMD group, a piece of the C loop (512), a Triton tile (8192), two programs.
SIZES = (0, 1, 15, 63, 123, 431, 512, 8191, 8193, 20_001)

Stats = Callable[[torch.Tensor, bool], torch.Tensor]


@pytest.fixture(params=["aten", "c", "c-portable", "interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def stats(request: pytest.FixtureRequest) -> Stats:
    """One implementation of `tensor_stats(x, full)`."""
    if request.param == "aten":
        return tensor_stats.tensor_stats_aten
    if request.param.startswith("c-") or request.param == "c":
        if not cpu.AVAILABLE:
            pytest.skip("the C extension was not built")
        portable = request.param == "c-portable"
        return lambda x, full: cpu.stats(tensor_stats._flat(x), tensor_stats._counts_small(x.dtype, full), portable)
    if request.param == "cuda":
        return lambda x, full: tensor_stats.tensor_stats_triton(x.cuda(), full).cpu()
    if torch.cuda.is_available():
        pytest.skip("kernels are compiled here, not interpreted")

    def interpreted(x: torch.Tensor, full: bool) -> torch.Tensor:
        with triton_on_cpu():
            return tensor_stats.tensor_stats_triton(x, full)

    return interpreted


def assert_row(row: torch.Tensor, expected: torch.Tensor) -> None:
    """Counts and absmax equal, null where null, norm to 1e-6."""
    assert row.dtype == torch.float64
    assert row.shape == expected.shape
    assert torch.equal(row[1:].nan_to_num(-1), expected[1:].nan_to_num(-1)), (row, expected)
    torch.testing.assert_close(row[0].sqrt(), expected[0].sqrt(), rtol=1e-6, atol=0)


def random(n: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)).to(dtype)


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


def test_operator_passes_opcheck():
    """All of opcheck but its last part, to which nulls differ; the compiled layer below is tested for it."""
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    for x in (random(431, torch.float32), random(64, torch.float16).view(8, 8).mT):
        torch.library.opcheck(tensor_stats._tensor_stats_op, (x, True), test_utils=checks)


def test_compiles_and_needs_no_gradient():
    @torch.compile(backend="aot_eager", fullgraph=True)
    def layer(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x * 2, tensor_stats.tensor_stats(x * 2)

    x = random(123, torch.float32).requires_grad_()
    y, row = layer(x)
    assert not row.requires_grad
    assert_row(row, tensor_stats.tensor_stats_reference(y))


def test_aten_serves_without_the_extension(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cpu, "AVAILABLE", False)
    monkeypatch.setattr(cpu, "_stats", None)
    x = random(431, torch.float16)
    assert_row(tensor_stats.tensor_stats(x), tensor_stats.tensor_stats_reference(x))
    assert torch.equal(tensor_stats.exponent_histogram(x), tensor_stats.exponent_histogram_reference(x))
    stored, row = tensor_stats.round_with_stats_cpu(x.float() * 1e5, torch.float16)
    assert_row(row, tensor_stats.round_with_stats_reference(x.float() * 1e5, torch.float16)[1])
    assert stored.isinf().any()


@pytest.mark.skipif(not cpu.AVAILABLE, reason="the C extension was not built")
def test_threads_do_not_change_the_bits():
    x = random(3 * 2**18 + 431, torch.float32)
    threads = torch.get_num_threads()
    try:
        rows = []
        for n in (1, 2, 3, 64):
            torch.set_num_threads(n)
            rows += [cpu.stats(x, True), cpu.stats(x, True, portable=True)]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(row[:4], rows[0][:4]) for row in rows)
    assert_row(rows[0], tensor_stats.tensor_stats_reference(x))


# Rounding an accumulator: overflow and underflow


@jit
def rounding_kernel(acc_ptr, stored_ptr, partials_ptr, n_rows, n_cols, BLOCK: tl.constexpr):
    """What a fused epilogue does: a two-dimensional tile, masked on both sides, stored and counted."""
    pid = tl.program_id(0).to(tl.int64)
    rows = pid * BLOCK + tl.arange(0, BLOCK)[:, None]
    cols = tl.arange(0, 2 * BLOCK)[None, :]
    total = tensor_stats.no_partials(True, True)
    for start in range(0, n_cols, 2 * BLOCK):  # type: ignore[reportArgumentType]
        mask = (rows < n_rows) & (start + cols < n_cols)
        offsets = rows * n_cols + start + cols
        acc = tl.load(acc_ptr + offsets, mask=mask, other=1e30)
        stored = acc.to(stored_ptr.dtype.element_ty)
        tl.store(stored_ptr + offsets, stored, mask=mask)
        total = tensor_stats.add_partials(total, tensor_stats.tile_partials(acc, stored, mask, True, True))
    tensor_stats.write_partials(partials_ptr, pid, total)


def round_in_kernel(acc: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    rows, cols = acc.shape
    stored = torch.empty_like(acc, dtype=dtype)
    programs = max(1, triton.cdiv(rows, 8))
    partials = torch.empty((programs, N_PARTIALS), dtype=torch.float64, device=acc.device)
    rounding_kernel[(programs,)](acc, stored, partials, rows, cols, BLOCK=8, enable_fp_fusion=False)
    return stored.cpu(), reduce_partials(partials, acc.numel()).cpu()


def accumulator(dtype: torch.dtype, rows: int, cols: int) -> tuple[torch.Tensor, int, int]:
    """Values with planted edges, and how many of them overflow and underflow."""
    if dtype == torch.float16:
        largest, smallest = 65520.0, 2.0**-25
    else:
        largest, smallest = (2 - 2**-8) * 2.0**127, 2.0**-134
    largest_kept = torch.tensor(largest).nextafter(torch.tensor(0.0)).item()
    smallest_kept = torch.tensor(smallest).nextafter(torch.tensor(1.0)).item()
    acc = random(rows * cols, torch.float32)
    overflow = [largest, -largest, torch.finfo(torch.float32).max]
    underflow = [smallest, -smallest, smallest / 2]
    kept = [largest_kept, -largest_kept, smallest_kept, -smallest_kept, 0.0, -0.0, INF, NAN]
    planted = torch.tensor(overflow + underflow + kept)
    half = len(planted) // 2
    acc[:half], acc[-half:] = planted[:half], planted[half:]
    return acc.view(rows, cols), len(overflow), len(underflow)


@pytest.mark.parametrize("shape", [(1, 63), (123, 5), (9, 431), (8, 16)])
def test_kernel_counts_overflow_and_underflow(shape: tuple[int, int], triton_device: str):
    acc, n_overflow, n_underflow = accumulator(torch.float16, *shape)
    stored, row = round_in_kernel(acc.to(triton_device), torch.float16)
    expected, expected_row = tensor_stats.round_with_stats_reference(acc, torch.float16)
    assert row[4:6].tolist() == [n_overflow, n_underflow]
    torch.testing.assert_close(stored, expected, rtol=0, atol=0, equal_nan=True)
    assert_row(row, expected_row)


def test_kernel_rounds_to_fp32_without_overflow(triton_device: str):
    acc, _, _ = accumulator(torch.bfloat16, 9, 63)
    _, row = round_in_kernel(acc.to(triton_device), torch.float32)
    assert_row(row, tensor_stats.round_with_stats_reference(acc, torch.float32)[1])
    assert row[4:6].tolist() == [0, 0]


@pytest.mark.gpu
def test_kernel_rounds_to_bf16():
    """The interpreter truncates where hardware rounds, so only a GPU can tell."""
    acc, n_overflow, n_underflow = accumulator(torch.bfloat16, 9, 63)
    _, row = round_in_kernel(acc.cuda(), torch.bfloat16)
    assert row[4:6].tolist() == [n_overflow, n_underflow]
    assert_row(row, tensor_stats.round_with_stats_reference(acc, torch.bfloat16)[1])


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 14), (7, 9), (123, 63), (2, 2**18 + 1)])
def test_c_counts_overflow_and_underflow(shape: tuple[int, int], dtype: torch.dtype, portable: bool):
    if not cpu.AVAILABLE:
        pytest.skip("the C extension was not built")
    acc, n_overflow, n_underflow = accumulator(dtype, *shape)
    stored = torch.empty_like(acc, dtype=dtype)
    row = cpu.round_with_stats(acc, stored, portable)
    expected, expected_row = tensor_stats.round_with_stats_reference(acc, dtype)
    assert row[4:6].tolist() == [n_overflow, n_underflow]
    torch.testing.assert_close(stored, expected, rtol=0, atol=0, equal_nan=True)
    assert_row(row, expected_row)


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_c_rounds_every_magnitude_as_torch_does(dtype: torch.dtype, portable: bool):
    if not cpu.AVAILABLE:
        pytest.skip("the C extension was not built")
    generator = torch.Generator().manual_seed(3)
    random_bits = torch.randint(-(2**31), 2**31, (100_001,), generator=generator)
    ties = torch.arange(2**16) << 16 | 0x8000  # bf16 ties; those of fp16 are 0x1000 in the lower bits
    fp16_ties = (torch.arange(0x3300, 0x4790) << 16)[:, None] + torch.arange(0x0FFF, 0x10000, 0x1000)
    bits = torch.cat((random_bits, ties, fp16_ties.flatten()))
    acc = bits.to(torch.int32).view(torch.float32)
    stored = torch.empty_like(acc, dtype=dtype)
    row = cpu.round_with_stats(acc, stored, portable)
    expected, expected_row = tensor_stats.round_with_stats_reference(acc, dtype)
    finite = ~expected.isnan()
    assert torch.equal(stored.isnan(), expected.isnan())
    assert torch.equal(stored.view(torch.int16)[finite], expected.view(torch.int16)[finite])
    assert_row(row, expected_row)


@pytest.mark.parametrize("dtype", DTYPES)
def test_round_with_stats_takes_any_strides(dtype: torch.dtype):
    acc = random(6 * 41, torch.float32).view(6, 41).mT * 1e5
    stored, row = tensor_stats.round_with_stats_cpu(acc, dtype)
    expected, expected_row = tensor_stats.round_with_stats_reference(acc, dtype)
    assert torch.equal(stored, expected)
    assert_row(row, expected_row)


# Many tensors, histograms


@pytest.mark.parametrize("aligned", [True, False])
def test_many_tensors(triton_device: str, aligned: bool):
    sizes = (8, 8192, 40_960, 4) if aligned else (1, 0, 431, 8192, 20_001, 123)
    tensors = [random(n, torch.float32, seed=i) * 10.0 ** (9 * i - 20) for i, n in enumerate(sizes)]
    tensors[2][-1], tensors[2][0] = NAN, INF
    if triton_device == "cpu":
        with triton_on_cpu():
            rows = tensor_stats.multi_tensor_stats(tensors)
            again = tensor_stats.multi_tensor_stats(tensors)
    else:
        rows, again = (tensor_stats.multi_tensor_stats([x.cuda() for x in tensors]).cpu() for _ in range(2))
    for row, x in zip(rows, tensors, strict=True):
        assert_row(row, tensor_stats.tensor_stats_reference(x, full=False))
    assert torch.equal(rows.nan_to_num(-1), again.nan_to_num(-1))
    for row, x in zip(tensor_stats.multi_tensor_stats(tensors), tensors, strict=True):
        assert_row(row, tensor_stats.tensor_stats_reference(x, full=False))


def test_many_tensors_says_what_it_cannot_take():
    assert tensor_stats.multi_tensor_stats([]).shape == (0, 9)
    with pytest.raises(ValueError, match=r"tensor 1 is torch\.float16"):
        tensor_stats.multi_tensor_stats([torch.zeros(3), torch.zeros(3, dtype=torch.float16)])
    with pytest.raises(ValueError, match="tensor 0"):
        tensor_stats.multi_tensor_stats([torch.zeros(3, 4).mT])


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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [0, 1, 431, 20_001])
def test_exponents(dtype: torch.dtype, n: int, triton_device: str):
    x = random(n, dtype) * 1e-4
    if n > 1:
        x[0], x[1], x[-1], x[-2] = NAN, INF, 0.0, -1.0
    expected = torch.zeros(256, dtype=torch.int64)
    for value in x.double().tolist():
        if not math.isfinite(value):
            expected[255] += 1
        elif value == 0:
            expected[0] += 1
        else:
            expected[max(math.frexp(value)[1] + 126, 0)] += 1
    counts = tensor_stats.exponent_histogram_triton(x.to(triton_device)).cpu()
    assert torch.equal(counts, expected)
    assert torch.equal(tensor_stats.exponent_histogram(x), expected)
    assert torch.equal(tensor_stats.exponent_histogram_reference(x), expected)
