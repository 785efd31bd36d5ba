"""One worker a device: a second waits, and has it when the first is gone, however it went."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from lora_train.trainer.sweep.measure import alone_on

from ...conftest import COMMAND_ENVIRONMENT
from .test_worker import until

HOLDER = """
import sys, time
from lora_train.trainer.sweep.measure import alone_on
with alone_on(sys.argv[1], lambda name: print("waits for", name, flush=True)):
    print("has it", flush=True)
    sys.stdin.read()
"""


def holder(device: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, device],
        env=COMMAND_ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_second_worker_waits_for_the_card(tmp_path):
    device = f"GPU-{tmp_path.name}-{os.getpid()}"
    first = holder(device)
    assert first.stdout is not None
    assert first.stdout.readline() == "has it\n"
    second, other = holder(device), holder(device + "-other")
    assert second.stdout is not None
    assert other.stdout is not None
    try:
        assert second.stdout.readline() == f"waits for {device}\n"
        assert other.stdout.readline() == "has it\n"  # another card is free
        os.kill(first.pid, signal.SIGKILL)
        assert second.stdout.readline() == "has it\n"
        until(lambda: first.poll() is not None, "the end of the first")
    finally:
        for process in (first, second, other):
            process.kill()
            process.communicate()


def test_on_the_cpu_nobody_waits():
    told: list[str] = []
    with alone_on(None, told.append), alone_on(None, told.append):
        assert told == []
