"""A terminal that is closed, or a full disk behind `> file`: a run keeps what it has, or goes on as it was told."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest
from lora_train.trainer import phases
from lora_train.trainer.console import Console
from lora_train.trainer.loop.checkpoint import checkpoints
from lora_train.trainer.terminal import Terminal

from ..conftest import COMMAND_ENVIRONMENT, ROOT
from .test_cli import steps_of, write_config


@contextlib.contextmanager
def output_without_room() -> Iterator[TextIO]:
    with contextlib.suppress(OSError), open("/dev/full", "w") as full, contextlib.redirect_stdout(full):
        yield full


def test_what_has_no_room_is_lost():
    ended = False
    with output_without_room() as full:
        terminal = Terminal()
        assert terminal.fileno() == full.fileno()
        assert terminal.write("abc") == 3
        terminal.flush()
        Console().line("a line")
        ended = True
    assert ended


def test_other_faults_are_raised(monkeypatch):
    class Broken:
        def write(self, text: str) -> int:
            raise OSError(errno.EBADF, "it is closed")

    monkeypatch.setattr(sys, "stdout", Broken())
    with pytest.raises(OSError, match="it is closed"):
        Terminal().write("abc")


def test_a_run_whose_output_nobody_reads_any_more_goes_on(tiny_models, tmp_path):
    """As `lora-train ... | tee log` after tee was killed."""
    config = write_config(tmp_path, tiny_models["llama"], max_steps=30, save_strategy="no")
    command = [sys.executable, "-m", "lora_train.trainer.cli", "--config", str(config)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=COMMAND_ENVIRONMENT
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None
        errors = process.stderr.read()
    assert (process.returncode, errors) == (0, "")
    assert steps_of(tmp_path / "run")[-1]["step"] == 30


def closed_at_step_two(config: Path, ignored: bool, **environment: str) -> subprocess.CompletedProcess:
    """A run in a terminal that is closed after its second step; `ignored` as nohup has it."""
    main, other = pty.openpty()

    def begin() -> None:
        fcntl.ioctl(other, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)  # whatever the tests inherited

    command = [sys.executable, "-m", "lora_train.trainer.cli", "--config", str(config)]
    process = subprocess.Popen(
        command, stdin=other, stdout=other, stderr=subprocess.PIPE, text=True, cwd=ROOT, preexec_fn=begin,
        start_new_session=True, env={**COMMAND_ENVIRONMENT, "TERM": "xterm", **environment},
    )  # fmt: skip
    os.close(other)
    seen = b""
    while b"eval 2" not in seen:
        seen += os.read(main, 65536)
    os.close(main)
    try:
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    return subprocess.CompletedProcess(command, process.returncode, "", errors)


@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}], ids=["bar", "plain"])
@pytest.mark.parametrize(("ignored", "steps"), [(False, 100_000), (True, 40)], ids=["heard", "nohup"])
def test_a_terminal_that_is_closed(tiny_models, tmp_path, cli, ignored, steps, environment):
    run = tmp_path / "run"
    config = write_config(
        tmp_path, tiny_models["llama"], max_steps=steps, save_strategy="no", eval_strategy="steps", eval_steps=2
    )
    config.write_text(config.read_text().replace("limit: 40", "limit: 40\n  eval_fraction: 0.1"))
    result = closed_at_step_two(config, ignored, **environment)
    assert (result.returncode, result.stderr) == (0 if ignored else 129, "")
    if ignored:
        assert steps_of(run)[-1]["step"] == steps
        assert (run / "adapter" / "adapter_model.safetensors").exists()
        return
    (kept,) = checkpoints(run)
    step = int(kept.name.split("-")[1])
    assert 2 <= step < steps
    again = cli("--config", config, f"training.max_steps={step + 2}", "--resume", "auto")
    assert f"going on after step {step}" in again.stdout


def test_phases_before_a_run_are_lost_too(monkeypatch):
    monkeypatch.setattr(phases, "is_shown", lambda: True)
    ended = False
    with output_without_room():
        with phases.phase("reading", 3) as advance:
            advance(3)
        ended = True
    assert ended
