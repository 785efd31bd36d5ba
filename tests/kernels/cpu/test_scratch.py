"""Scratch memory of the C files: how much there is, that it is given back, and what happens where there is none."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import pytest
import torch
from lora_train.kernels import cpu

from ..helpers import DTYPES, at_level, levels_here
from .calls import X, attention, calls, heads, read, update

pytestmark = pytest.mark.skipif(not cpu.AVAILABLE, reason="the C extension was not built")
CALLS: dict[str, Callable[[], Any]] = calls() if cpu.AVAILABLE else {}
LIMITS = cpu.LIMITS
# Three need no more than the stack; a product keeps what the first one took.
UNSWEPT = ("exponents", "gate", "gate_backward", "product")


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a.nan_to_num(-1), b.nan_to_num(-1))
    return numpy.array_equal(a, b, equal_nan=True) if isinstance(a, numpy.ndarray) else a == b


@pytest.fixture
def no_failure() -> Iterator[None]:
    yield
    cpu.fail_after(-1)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def peak(call: Callable[[], Any]) -> int:
    """Most scratch memory of a call beside what there was."""
    before = cpu.scratch_bytes()
    cpu.reset_scratch_peak()
    call()
    return cpu.scratch_peak() - before


@pytest.mark.parametrize(
    "name", [name for name in CALLS if name not in ("exponents", "gate", "gate_backward", "product")]
)
def test_every_allocation_that_fails_is_a_memory_error(name: str, no_failure: None):
    """And the next call is right, and nothing is lost of what the failed one had."""
    call = CALLS[name]
    expected, held = call(), cpu.scratch_bytes()
    failed = 0
    while True:
        cpu.fail_after(failed)
        try:
            found = call()
        except MemoryError:
            assert cpu.scratch_bytes() <= held
            failed += 1
            continue
        break
    cpu.fail_after(-1)
    assert failed >= 1
    assert all(same(a, b) for a, b in zip(found, expected, strict=True))
    assert all(same(a, b) for a, b in zip(call(), expected, strict=True))
    assert cpu.scratch_bytes() == held


@pytest.mark.skipif(not cpu.TILES, reason="this chip multiplies no bf16 in tiles")
def test_a_product_without_memory_is_a_memory_error(threads: Callable[[int], None], no_failure: None):
    """More threads than before need more planes than are kept."""
    expected = CALLS["product"]()
    for n_threads in (11, 12):
        threads(n_threads)
        cpu.fail_after(0)
        with pytest.raises(MemoryError):
            CALLS["product"]()
        assert cpu.scratch_bytes() == 0
        assert all(same(a, b) for a, b in zip(CALLS["product"](), expected, strict=True))
        planes = n_threads * LIMITS["product"]["W_PLANES"] + LIMITS["product"]["X_PLANES"]
        assert cpu.scratch_bytes() == 2 * planes


@pytest.mark.parametrize("name", CALLS)
def test_all_that_was_allocated_is_given_back(name: str):
    CALLS[name]()
    held = cpu.scratch_bytes()
    CALLS[name]()
    assert cpu.scratch_bytes() == held


@pytest.mark.parametrize("name", [name for name in CALLS if name != "product"])
def test_every_level_takes_as_much(name: str):
    found = set()
    for level in levels_here():
        with at_level(level):
            found.add(peak(CALLS[name]))
    assert len(found) == 1


@pytest.mark.parametrize("allocation", range(3))
def test_an_update_without_memory_adds_nothing(allocation: int, no_failure: None):
    x = X.clone()
    cpu.fail_after(allocation)
    with pytest.raises(MemoryError):
        update(x, torch.float32)
    assert torch.equal(x, X)


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_a_norm_takes_is_counted_to_the_byte(n_threads: int, dtype: torch.dtype, threads: Callable[[int], None]):
    threads(n_threads)
    x = torch.ones(100, 3000, dtype=dtype)  # five rows a share
    row = -(-LIMITS["elementwise"]["ROWS_HELD"] * 4 * 3000 // LIMITS["elementwise"]["LINE"]) * 64
    assert peak(lambda: cpu.norm(x, torch.ones(3000), 1e-5)) == n_threads * row


@pytest.mark.parametrize(("rows", "shares"), [(1, 1), (64, 1), (65, 2), (4096, 32), (5000, 32)])
def test_what_a_read_takes_is_counted_to_the_byte(rows: int, shares: int, threads: Callable[[int], None]):
    threads(1)
    limits, values = LIMITS["low_rank"], 5 * 48
    blocks, partials = 4 * limits["BLOCK_BYTES"], shares * (limits["PARTIAL_BYTES"] + limits["SPAN_BYTES"])
    factors = 4 * values + 4 * values * shares
    assert peak(lambda: read(torch.ones(rows, 48))) == blocks + partials + factors + 4 * limits["TILE"] * 48


def test_what_a_read_of_examples_takes_is_counted_to_the_byte(threads: Callable[[int], None]):
    """Two shares of several, each with room for one example's part of G, and one of an example that is cut."""
    threads(1)
    limits, values = LIMITS["low_rank"], 5 * 48
    starts, squares = numpy.array([0, 30, 60, 90, 120, 220]), numpy.zeros((5, 2))
    taken = peak(lambda: read(torch.ones(220, 48), examples=cpu.Squares(starts, squares)))
    shares = 4 * (limits["PARTIAL_BYTES"] + limits["SPAN_BYTES"] + 4 * values)
    owners, pieces = 2 * 5, 4 * values
    tile = 4 * limits["TILE"] * 48
    assert taken == 4 * limits["BLOCK_BYTES"] + shares + 4 * values + owners + tile + pieces


def test_what_attention_takes_is_counted_to_the_byte(threads: Callable[[int], None]):
    threads(3)
    block, padded, cols = LIMITS["attention"]["BLOCK"], 64, 16
    values = 6 * padded * cols + 2 * block * padded + 4 * block * cols
    assert peak(lambda: attention(heads(4), heads(2), heads(2))) == 3 * 4 * values


def test_a_limit_of_the_system_is_a_memory_error():
    """A row of four megabytes, in a process that may have a little more memory than it has."""
    code = """
import resource, psutil, torch
from lora_train.kernels import cpu
x, weight = torch.ones(1, 1 << 22), torch.ones(1 << 22)
held = [torch.empty_like(x), torch.empty_like(x)]
most = psutil.Process().memory_info().vms + (24 << 20)
resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))
del held
try:
    cpu.norm(x, weight, 1e-5)
except MemoryError:
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
    assert torch.equal(cpu.norm(x, weight, 0.0)[0], x)
    print("raised")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout) == (0, "raised\n"), result.stderr
