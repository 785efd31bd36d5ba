"""The ring between device and host."""

from __future__ import annotations

import pytest
import torch
from lora_train.instrument.record.ring import Ring


def test_rows_come_in_order_and_are_copies():
    ring = Ring((2,), torch.device("cpu"))
    row = torch.tensor([1.0, 2.0], dtype=torch.float64)
    ring.push(1, row)
    row += 1
    ring.push(2, row)
    assert [(step, values.tolist()) for step, values in ring.ready()] == [(1, [1.0, 2.0]), (2, [2.0, 3.0])]
    assert list(ring.drain()) == []


@pytest.mark.gpu
def test_push_and_ready_never_wait_for_the_gpu():
    ring = Ring((2,), torch.device("cuda"), n_slots=2)
    rows = torch.arange(20, dtype=torch.float64, device="cuda").view(10, 2)
    torch.cuda.set_sync_debug_mode("error")
    try:
        seen = []
        for step in range(10):
            ring.push(step, rows[step])
            seen += [(done, values.tolist()) for done, values in ring.ready()]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    seen += [(done, values.tolist()) for done, values in ring.drain()]
    assert seen == [(step, [2.0 * step, 2.0 * step + 1]) for step in range(10)]


@pytest.mark.gpu
def test_a_bounded_ring_drops_and_counts():
    ring = Ring((2,), torch.device("cuda"), n_slots=2, may_drop=True)
    for step in range(5):
        ring.push(step, torch.zeros(2, dtype=torch.float64, device="cuda"))
    assert (ring.dropped, len(list(ring.drain()))) == (3, 2)
