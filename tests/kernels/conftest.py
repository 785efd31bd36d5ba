"""Fixtures of the kernel tests: where Triton runs, and memory that shows what a kernel forgot to write."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from .lora_linear.lora_layer import Backend


@pytest.fixture(
    params=[
        pytest.param("cpu", id="interpreter"),
        pytest.param("cuda", id="cuda", marks=pytest.mark.gpu),
    ]
)
def triton_device(request: pytest.FixtureRequest) -> str:
    """The device whose tensors a Triton launcher takes: `cpu` is the interpreter (tests/conftest.py)."""
    return request.param


@pytest.fixture(
    params=[
        "cpu",
        "cpu in tiles",
        "cpu without C",
        "interpreter",
        "interpreter sm_75",
        pytest.param("cuda", marks=pytest.mark.gpu),
    ]
)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """Where a fused LoRA linear runs."""
    from .lora_linear.lora_layer import on_backend  # imports triton: after tests/conftest.py's choice

    return on_backend(request.param, monkeypatch)


@pytest.fixture(autouse=True)
def nan_in_fresh_memory() -> Iterator[None]:
    """torch.empty() is filled with NaN, or the largest integer, while deterministic algorithms are on."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def null_equals_null(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets opcheck compare statistics: a null count is NaN, which its last part would call different from itself."""
    from torch.testing._internal.optests import generate_tests  # imports triton: after tests/conftest.py's choice

    check = generate_tests.aot_autograd_check

    def equal_nan(*args, assert_equals_fn, **kwargs):
        return check(*args, assert_equals_fn=functools.partial(assert_equals_fn, equal_nan=True), **kwargs)

    monkeypatch.setattr(generate_tests, "aot_autograd_check", equal_nan)
