"""Launches happen on the device of their tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from lora_train.kernels import backend, cross_entropy
from lora_train.kernels.backend import on_device, triton_on_cpu
from lora_train.kernels.frozen import nf4
from lora_train.kernels.statistics import exponents, multi_tensor, reduce, tensor_stats


@pytest.mark.parametrize(("index", "current", "entered"), [(0, 0, []), (1, 1, []), (1, 0, [1]), (0, 1, [0])])
def test_another_gpus_tensor_makes_its_device_the_current_one(monkeypatch, index, current, entered):
    """Here is no second GPU: what torch is asked for is looked at."""
    seen: list[int] = []

    @contextmanager
    def device(wanted: torch.device) -> Iterator[None]:
        seen.append(wanted.index)
        yield

    monkeypatch.setattr("torch.cuda.current_device", lambda: current)
    monkeypatch.setattr("torch.cuda.device", device)
    tensor: Any = SimpleNamespace(is_cuda=True, device=torch.device("cuda", index))
    with on_device(tensor):
        assert seen == entered


def test_a_cpu_tensor_asks_cuda_nothing(monkeypatch):
    monkeypatch.setattr("torch.cuda.current_device", lambda: pytest.fail("CUDA was asked"))
    with on_device(torch.ones(1)):
        pass


def _nf4(x: torch.Tensor) -> None:
    packed = torch.zeros(32, 1, dtype=torch.uint8)
    nf4.nf4_decode_triton(nf4.NF4Weight(packed, x[:1], x[:16], 64), (64,), torch.float32)


def _cross_entropy(x: torch.Tensor) -> None:
    hidden = x[:64].view(4, 16)
    cross_entropy.linear_cross_entropy(hidden, hidden, torch.zeros(4, dtype=torch.int64))


def _ragged(x: torch.Tensor) -> None:
    first = torch.tensor([0, 2])
    reduce.reduce_ragged_partials(x[:16].double().view(2, 8), first, first[1:])


LAUNCHES: list[tuple[ModuleType, str, Callable[[torch.Tensor], Any]]] = [
    (tensor_stats, "_stats_kernel", lambda x: tensor_stats.tensor_stats_triton(x, True)),
    (multi_tensor, "_multi_stats_kernel", lambda x: multi_tensor.multi_tensor_stats([x, x])),
    (exponents, "_histogram_kernel", exponents.exponent_histogram),
    (reduce, "_rows_kernel", lambda x: reduce.reduce_partials(x[:16].double().view(2, 8), 3)),
    (reduce, "_ragged_rows_kernel", _ragged),
    (nf4, "_nf4_decode_kernel", _nf4),
    (cross_entropy, "_cross_entropy_kernel", _cross_entropy),
]


@pytest.mark.parametrize(("module", "name", "call"), LAUNCHES, ids=[name for _, name, _ in LAUNCHES])
def test_every_launch_stands_in_it(monkeypatch, module, name, call):
    entered: list[torch.Tensor] = []
    launched: list[int] = []
    kernel = getattr(module, name)

    @contextmanager
    def recorded(x: torch.Tensor) -> Iterator[None]:
        entered.append(x)
        yield
        entered.pop()

    class Spied:
        def __getitem__(self, grid: Any) -> Any:
            launched.append(len(entered))
            return kernel[grid]

    monkeypatch.setattr(module, "on_device", recorded)
    monkeypatch.setattr(module, name, Spied())
    with triton_on_cpu():
        call(torch.linspace(-1, 1, 100))
    assert launched == [1]


@pytest.mark.gpu
def test_tensors_on_a_second_gpu():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    torch.cuda.set_device(0)
    x = torch.linspace(-1, 1, 1000)
    row = tensor_stats.tensor_stats(x.to("cuda:1"))
    assert row.device == torch.device("cuda", 1)
    assert torch.equal(row[1:].nan_to_num(-1).cpu(), tensor_stats.tensor_stats_reference(x)[1:].nan_to_num(-1))
    assert backend.on_device(torch.ones(1, device="cuda:0")) is backend._NOTHING
