"""Brings one row of device scalars per step to the host without ever waiting for the device.

A ring of pinned slots: `push` starts an asynchronous copy of a step's row and returns; `ready` hands out, in
order, the rows whose copy has finished. On the CPU a row is ready at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import torch

# Steps the host may lag behind the device before `push` reuses a slot; a slot is a few kilobytes.
N_SLOTS = 8


class Ring:
    """Rows on their way from the device to the host."""

    def __init__(self, width: int, device: torch.device, n_slots: int = N_SLOTS):
        self._device = device
        self._in_flight: deque[tuple[int, torch.Tensor, torch.cuda.Event | None]] = deque()
        self._slots: deque[torch.Tensor] = deque()
        if device.type == "cuda":
            self._slots.extend(torch.empty(width, dtype=torch.float64, pin_memory=True) for _ in range(n_slots))

    def push(self, step: int, row: torch.Tensor) -> None:
        """Sends a row on its way.

        Args:
            step: what `ready` will call it.
            row: float64 [width] on the device.
        """
        if self._device.type != "cuda":
            self._in_flight.append((step, row.clone(), None))
            return
        # A slot is taken from the pool only when its row has been handed out; a fresh one if the host lags.
        slot = self._slots.popleft() if self._slots else torch.empty_like(row, device="cpu", pin_memory=True)
        slot.copy_(row, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._in_flight.append((step, slot, event))

    def ready(self) -> Iterator[tuple[int, list[float]]]:
        """Rows that have arrived, oldest first."""
        while self._in_flight and (self._in_flight[0][2] is None or self._in_flight[0][2].query()):
            yield self._take()

    def drain(self) -> Iterator[tuple[int, list[float]]]:
        """All rows, waiting for those still on their way: for evaluation, checkpoints and the end."""
        while self._in_flight:
            event = self._in_flight[0][2]
            if event is not None:
                event.synchronize()
            yield self._take()

    def _take(self) -> tuple[int, list[float]]:
        step, slot, event = self._in_flight.popleft()
        values = slot.tolist()
        if event is not None:
            self._slots.append(slot)
        return step, values
