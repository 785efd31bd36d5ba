"""Counts what Triton kernels load and store, by running them in Triton's interpreter.

Every `tl.load` and `tl.store` of the interpreter passes one of two methods of its builder. Here these also count the
elements that are not masked off, and find by address which argument of the kernel they belong to; 8 bytes each where it
is none, as of a kernel that reads addresses from a table. A gather counts
every element it asks for. TRITON_INTERPRET=1 must be set before the kernels are imported.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from triton.runtime import interpreter

from .traffic import THROUGH_A_TABLE, Access, Launch


class TrafficCounter:
    """The launches seen so far; tensors are called by the kernel's arguments."""

    def __init__(self) -> None:
        self.launches: list[Launch] = []
        self._tensors: list[tuple[str, int, int, int]] = []  # argument, first address, end, bytes of an element
        self._touched: dict[str, set[int]] = {}

    def start(self, kernel: str, arguments: dict[str, Any]) -> None:
        self.launches.append(Launch(kernel))
        self._touched = {}
        self._tensors = []
        for name, x in arguments.items():
            if isinstance(x, torch.Tensor) and x.numel():
                last = sum(stride * (size - 1) for stride, size in zip(x.stride(), x.shape, strict=True))
                end = x.data_ptr() + (last + 1) * x.element_size()
                self._tensors.append((name, x.data_ptr(), end, x.element_size()))

    def count(self, pointers: np.ndarray, mask: np.ndarray, is_store: bool) -> None:
        addresses = np.asarray(pointers)[np.asarray(mask, dtype=bool)]
        if not addresses.size:
            return
        low, high = int(addresses.min()), int(addresses.max())
        within = ((name, item) for name, start, end, item in self._tensors if start <= low and high < end)
        name, item = next(within, (THROUGH_A_TABLE, 8))
        access = self.launches[-1].accesses.setdefault(name, Access(name, 0))
        if is_store:
            access.stored += addresses.size * item
        else:
            access.loaded += addresses.size * item
        touched = self._touched.setdefault(name, set())
        touched.update(addresses.tolist())
        access.size = len(touched) * item


@contextmanager
def counted_traffic() -> Iterator[list[Launch]]:
    """Lists every launch of an interpreted kernel inside, with what it loads and stores."""
    counter = TrafficCounter()
    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    load, store, launch = builder.create_masked_load, builder.create_masked_store, executor.__call__

    def counted_load(self: Any, ptrs: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        counter.count(ptrs.data, mask.data, is_store=False)
        return load(self, ptrs, mask, *rest, **named)

    def counted_store(self: Any, ptrs: Any, value: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        counter.count(ptrs.data, mask.data, is_store=True)
        return store(self, ptrs, value, mask, *rest, **named)

    def counted_launch(self: Any, *arguments: Any, **named: Any) -> Any:
        counter.start(self.fn.__name__, dict(zip(self.fn.__code__.co_varnames, arguments, strict=False)) | named)
        return launch(self, *arguments, **named)

    with (
        mock.patch.object(builder, "create_masked_load", counted_load),
        mock.patch.object(builder, "create_masked_store", counted_store),
        mock.patch.object(executor, "__call__", counted_launch),
    ):
        yield counter.launches
