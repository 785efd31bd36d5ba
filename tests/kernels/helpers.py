"""Values with known trouble, and the comparison of rows, for the tests of everything that makes a row."""

import contextlib
import math
from collections.abc import Iterator
from random import Random

import torch
from lora_train.kernels import cpu
from lora_train.kernels.cpu_level import LEVELS

INF, NAN = math.inf, math.nan
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def random_shapes(count: int, *most: int) -> list[tuple[int, ...]]:
    """`count` shapes, the same every time: each length at most `most`, and a 1 in one of three."""
    draw = Random(count + sum(most))
    return [tuple(draw.choice([1, draw.randint(1, n), draw.randint(1, n)]) for n in most) for _ in range(count)]


def levels_here() -> tuple[str, ...]:
    """The levels of the CPU's loops that this chip has."""
    return LEVELS[: LEVELS.index(cpu.BEST) + 1] if cpu.BEST else ()


@contextlib.contextmanager
def at_level(level: str) -> Iterator[None]:
    """The C loops at this level; not what torch's libraries run."""
    assert cpu.LEVEL is not None
    cpu.use(level)
    try:
        yield
    finally:
        cpu.use(cpu.LEVEL)


def assert_row(row: torch.Tensor, expected: torch.Tensor) -> None:
    """Counts and absmax equal, null where null, norm to 1e-6."""
    assert row.dtype == torch.float64
    assert row.shape == expected.shape
    assert torch.equal(row[1:].nan_to_num(-1), expected[1:].nan_to_num(-1)), (row, expected)
    torch.testing.assert_close(row[0].sqrt(), expected[0].sqrt(), rtol=1e-6, atol=0)


def random(n: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)).to(dtype)


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
