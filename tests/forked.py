"""The real command line in a process of its own, forked from one that has imported the libraries.

A fresh interpreter spends ten seconds of CPU time on importing torch, transformers and peft before it reads its first
argument; a fork of a process that has imported them spends none. All else is the command's own: arguments, folder,
standard input, output and error, signals, exit code. What is read when a module is imported (LORA_TRAIN_CPU,
HF_HUB_OFFLINE, TRITON_INTERPRET) a fork has already: a command with an environment of its own is a fresh interpreter.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

IMPORTED = [
    "lora_train.trainer.cli",
    "lora_train.trainer.run.start",
    "transformers.models.gpt_neox.modeling_gpt_neox",
    "transformers.models.llama.modeling_llama",
    "tests.forked",
]
"""What a training run imports, but what it imports for some configs alone (bitsandbytes, datasets)."""

ROOT = Path(__file__).resolve().parents[1]
_context = multiprocessing.get_context("forkserver")


def serve(environment: Mapping[str, str]) -> None:
    """Starts the process that is forked from, once; `environment` is what its imports see."""
    before = dict(os.environ)
    _context.set_forkserver_preload(IMPORTED)
    os.environ.clear()
    os.environ.update(environment, PYTHONPATH=str(ROOT))  # for the last of IMPORTED
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)


class Command:
    """A command line that runs: what tests use of `subprocess.Popen`, with files in place of pipes.

    Args:
        arguments: of `lora-train`, or of `code`.
        code: a program in place of the command line; finds the arguments in sys.argv.
    """

    def __init__(self, *arguments: object, environment: Mapping[str, str], cwd: Path, code: str | None = None) -> None:
        self.args = [*map(str, arguments)]
        self._output = [tempfile.NamedTemporaryFile(mode="r", encoding="utf-8") for _ in range(2)]  # noqa: SIM115
        names = [file.name for file in self._output]
        arguments_of_run = (self.args, code, dict(environment), str(cwd), *names)
        self._process = _context.Process(target=_run, args=arguments_of_run, daemon=True)  # ends with the tests
        serve(environment)
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """As `subprocess` gives it: minus the signal's number where one ended it."""
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return self.returncode

    def printed(self) -> str:
        """Standard output until now."""
        return Path(self._output[0].name).read_text(encoding="utf-8")

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Waits for the end; what was printed, standard output and standard error."""
        self.wait(timeout)
        return self._output[0].read(), self._output[1].read()

    def finished(self, timeout: float) -> subprocess.CompletedProcess:
        """Waits for the end and kills what doesn't come to it, as `subprocess.run` does."""
        try:
            output = self.communicate(timeout)
        except BaseException:
            self.kill()
            raise
        return subprocess.CompletedProcess(self.args, self.wait(), *output)


def _run(arguments: list[str], code: str | None, environment: dict[str, str], cwd: str, out: str, error: str) -> None:
    """In the fork: makes the process what a shell would have made it, then runs."""
    for descriptor, name in ((1, out), (2, error)):
        file = os.open(name, os.O_WRONLY)
        os.dup2(file, descriptor)
        os.close(file)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1, errors="backslashreplace")  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    os.chdir(cwd)
    sys.argv = ["lora-train" if code is None else "-c", *arguments]
    if code is None:
        from lora_train.trainer.cli import main

        sys.exit(main())
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
