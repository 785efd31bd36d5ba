"""One worker a GPU: a lock on this machine by the device's own name, dropped by the system with its worker.

CPU workers take none. A card that CUDA_VISIBLE_DEVICES renumbers keeps its name; a part of one (MIG) has its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout


@contextlib.contextmanager
def alone_on(device: str | None, waits: Callable[[str], None]) -> Iterator[None]:
    """Holds the device; where another worker does, waits until it is free.

    Args:
        device: its name; None for the CPU.
        waits: is told once that another has it.
    """
    if device is None:
        yield
        return
    name = hashlib.sha256(device.encode()).hexdigest()[:16]
    lock = FileLock(Path(tempfile.gettempdir()) / f"lora-train-device-{name}.lock", mode=0o666)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        waits(device)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
