"""The command in a process of its own, which goes on until it is ended."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path

from ....conftest import COMMAND_ENVIRONMENT

PROGRAM = (
    "import sys; from lora_train.trainer.cli import main; code = main(sys.argv[1:]); "
    "assert 'torch' not in sys.modules, 'torch was imported'; sys.exit(code)"
)


class Running:
    """A command whose lines are read while it goes on."""

    def __init__(self, *arguments: object, cwd: Path, **environment: str):
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *map(str, arguments)],
            cwd=cwd,
            env={**COMMAND_ENVIRONMENT, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)

    def line(self, start: str) -> str:
        """The next line that starts so."""
        while not (line := self._lines.get(timeout=120)).startswith(start):
            pass
        return line

    def end(self, number: signal.Signals) -> tuple[int, str]:
        """Sends a signal to it and all it started, as a terminal does; its exit code and what it complained of."""
        os.killpg(self.process.pid, number)
        return self.wait()

    def wait(self) -> tuple[int, str]:
        """Its exit code and what it complained of."""
        code = self.process.wait(timeout=120)
        assert self.process.stderr is not None
        return code, self.process.stderr.read()

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
