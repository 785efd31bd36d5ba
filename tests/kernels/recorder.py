"""What a call takes in bytes: every allocation that torch records, and what the C files count."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from lora_train.kernels import cpu
from torch.profiler import ProfilerActivity, profile

EXTENSIONS = ("_attention", "_elementwise", "_low_rank", "_product", "_stats")


class _Counted:
    """An extension whose calls show torch's recorder what they have taken: a block of the size that they counted is
    allocated and given back as soon as they return, when the tensors of their callers are as they were inside.
    """

    def __init__(self, module: Any):
        self._module = module

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._module, name)

        def call(*arguments: Any) -> Any:
            cpu.reset_scratch_peak()
            result = function(*arguments)
            if taken := cpu.scratch_peak() - cpu.scratch_bytes():  # but for what stays
                torch.empty(taken, dtype=torch.uint8)
            return result

        return function if name in ("scratch_bytes", "reset_peak", "use_level", "limits") else call


@contextlib.contextmanager
def counted() -> Iterator[None]:
    """While it lasts the C files' scratch is among what `inside` sees."""
    before = {name: getattr(cpu, name) for name in EXTENSIONS}
    try:
        for name, module in before.items():
            setattr(cpu, name, module and _Counted(module))
        yield
    finally:
        for name, module in before.items():
            setattr(cpu, name, module)


@contextlib.contextmanager
def _nothing_collected() -> Iterator[None]:
    """Tensors in circles of earlier calls are not given back meanwhile: they would be seen as this call's."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def inside(call: Callable[[], Any]) -> tuple[int, Any]:
    """Most bytes alive at once during a call, less what is alive after it; its result."""
    with counted(), _nothing_collected(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        result = call()
    assert profiled.profiler is not None
    results: Any = profiled.profiler.kineto_results
    events = sorted((e for e in results.events() if e.name() == "[memory]"), key=lambda event: event.start_ns())
    alive = np.cumsum([event.nbytes() for event in events], dtype=np.int64)
    return (int(max(alive.max(), 0) - alive[-1]), result) if len(alive) else (0, result)
