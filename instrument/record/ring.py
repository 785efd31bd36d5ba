"""Rows on their way from the device to the host, without ever making the host wait.

A ring of pinned slots carries a step's rows: `push` starts an asynchronous copy and returns; `ready` hands out, in
order, the rows whose copy has finished. On the CPU a row is ready at once. A ring that may drop keeps its memory
bounded: when the host lags behind by all its slots, a row is dropped and counted.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator

import torch

from ...kernels.backend import is_gpu

# Steps the host may lag behind the device; a slot holds one step.
N_SLOTS = 8


class Ring:
    """Rows on their way from the device to the host.

    Attributes:
        dropped: rows that found no free slot.
    """

    def __init__(self, shape: tuple[int, ...], device: torch.device, n_slots: int = N_SLOTS, may_drop: bool = False):
        self._shape, self._device, self._may_drop = shape, device, may_drop
        self._in_flight: deque[tuple[int, torch.Tensor, torch.cuda.Event | None]] = deque()
        n_pinned = n_slots if is_gpu(device) else 0
        self._slots = deque(self._pinned() for _ in range(n_pinned))
        self.dropped = 0

    def _pinned(self) -> torch.Tensor:
        return torch.empty(self._shape, dtype=torch.float64).pin_memory()

    def push(self, step: int, row: torch.Tensor) -> None:
        """Sends a row on its way.

        Args:
            step: what `ready` will call it.
            row: float64 of the ring's shape, on the device.
        """
        if not is_gpu(self._device):
            self._in_flight.append((step, row.clone(), None))
            return
        if not self._slots and self._may_drop:
            self.dropped += 1
            return
        slot = self._slots.popleft() if self._slots else self._pinned()
        slot.copy_(row, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._in_flight.append((step, slot, event))

    def ready(self, last: float = math.inf) -> Iterator[tuple[int, torch.Tensor]]:
        """Rows up to that step that have arrived, oldest first. A row is valid until the next one is asked for."""
        while self._in_flight and self._in_flight[0][0] <= last and self._arrived(self._in_flight[0][2]):
            yield from self._take()

    def _arrived(self, event: torch.cuda.Event | None) -> bool:
        return event is None or event.query()

    def drain(self) -> Iterator[tuple[int, torch.Tensor]]:
        """All rows, waiting for those still on their way: for evaluation, checkpoints and the end."""
        while self._in_flight:
            event = self._in_flight[0][2]
            if event is not None:
                event.synchronize()
            yield from self._take()

    def _take(self) -> Iterator[tuple[int, torch.Tensor]]:
        step, slot, event = self._in_flight.popleft()
        yield step, slot
        if event is not None:
            self._slots.append(slot)


def cloned(rows: Iterator[tuple[int, torch.Tensor]]) -> Iterator[tuple[int, torch.Tensor]]:
    """The same rows to keep."""
    for step, row in rows:
        yield step, row.clone()
