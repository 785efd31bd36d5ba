"""A forked command is a process like any other: its own streams, folder, environment, signals and exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .conftest import COMMAND_ENVIRONMENT, ROOT
from .forked import Command

SEEN = """
import os, sys
print("말", os.getcwd(), sys.argv[1:], os.environ.get("TRITON_INTERPRET"), len(os.listdir("/proc/self/task")))
print("error", file=sys.stderr)
sys.exit(5)
"""


def forked(code: str, *arguments: object, cwd: Path = ROOT) -> Command:
    return Command(*arguments, environment=COMMAND_ENVIRONMENT, cwd=cwd, code=code)


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts its threads in /proc")
def test_it_is_what_a_fresh_interpreter_is(tmp_path):
    result = forked(SEEN, "a b", 1, cwd=tmp_path).finished(timeout=60)
    fresh = subprocess.run(
        [sys.executable, "-c", SEEN, "a b", "1"], cwd=tmp_path, env=COMMAND_ENVIRONMENT, capture_output=True, text=True
    )
    assert (
        (result.returncode, result.stdout, result.stderr)
        == (5, fresh.stdout, "error\n")
        == (
            fresh.returncode,
            fresh.stdout,
            fresh.stderr,
        )
    )


def test_the_command_line_gives_its_exit_code(cli, tmp_path):
    result = cli("explain", tmp_path / "none")
    assert (result.returncode, "Traceback" in result.stderr) == (2, False)
    assert "none" in result.stderr
    assert cli("--help").stdout.startswith("usage: lora-train")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, -15), (signal.SIGINT, 1)])
def test_signals_end_it(number, code):
    command = forked("import time\nprint('here', flush=True)\ntime.sleep(60)")
    while not command.printed():
        assert command.poll() is None
        time.sleep(0.002)
    command.send_signal(number)
    out, error = command.communicate(timeout=60)
    assert (command.returncode, out) == (code, "here\n")
    assert ("KeyboardInterrupt" in error) == (number == signal.SIGINT)


def test_what_does_not_end_is_killed():
    command = forked("import time\ntime.sleep(60)")
    with pytest.raises(subprocess.TimeoutExpired):
        command.finished(timeout=0.1)
    assert command.wait(timeout=60) == -9


def test_the_libraries_are_imported_before_the_fork():
    result = forked("import sys\nprint('peft' in sys.modules, 'lora_train.trainer.run.start' in sys.modules)")
    assert result.finished(timeout=60).stdout == "True True\n"
