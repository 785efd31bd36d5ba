"""The device at hand, by the same few words with a GPU and without."""

from __future__ import annotations

import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from .machine import DRY_CHIP

HAS_CUDA = torch.cuda.is_available()
DEVICE = "cuda" if HAS_CUDA else "cpu"
NO_KERNELS = ("Memcpy", "Memset", "Optimizer.")
"""Beginnings of the names of what else a device does, or of a range that a library marks."""


def synchronize() -> None:
    """Waits until the device has done what it was told."""
    if HAS_CUDA:
        torch.cuda.synchronize()


def milliseconds(work: Callable[[], Any], repeats: int = 10, warm_up: int = 3) -> float:
    """Median of the device's time for `work`, by events; the host's where there is no GPU."""
    for _ in range(warm_up):
        work()
    return statistics.median(_once(work) for _ in range(repeats))


def _once(work: Callable[[], Any]) -> float:
    if not HAS_CUDA:
        started = time.perf_counter()
        work()
        return 1e3 * (time.perf_counter() - started)
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    work()
    after.record()
    after.synchronize()
    return before.elapsed_time(after)


def on_device() -> AbstractContextManager[Any]:
    """In a dry run the fake driver takes the launches of CPU tensors; with a GPU nothing is to be done."""
    if HAS_CUDA:
        return nullcontext()
    from ..fake_cuda import fake_cuda

    return fake_cuda(DRY_CHIP)


def kernel_milliseconds(work: Callable[[], Any], repeats: int = 10) -> dict[str, tuple[int, float]]:
    """Kernel name -> launches of one `work`, and the milliseconds of one launch.

    By torch's profiler. Without a GPU the launches are those that the fake driver counts and the times mean nothing.
    """
    if not HAS_CUDA:
        return _counted(work)
    work()
    synchronize()
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as taken:
        for _ in range(repeats):
            work()
        synchronize()
    times: dict[str, list[float]] = defaultdict(list)
    for event in taken.profiler.kineto_results.events():  # pyright: ignore[reportOptionalMemberAccess]
        if event.device_type() == torch.autograd.DeviceType.CUDA and not event.name().startswith(NO_KERNELS):
            times[event.name()].append(event.duration_ns() / 1e6)
    return {name: (round(len(each) / repeats), statistics.median(each)) for name, each in times.items()}


def _counted(work: Callable[[], Any]) -> dict[str, tuple[int, float]]:
    with on_device() as driver:
        before, started = Counter(driver.launches), time.perf_counter()
        work()
        taken, spent = driver.launches - before, 1e3 * (time.perf_counter() - started)
    return {name: (n, spent / sum(taken.values())) for name, n in taken.items()}
