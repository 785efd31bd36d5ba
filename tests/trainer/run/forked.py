"""The command in a child of a process that has imported everything: a run takes a second instead of fifteen.

`python -m tests.trainer.run.forked` reads one request a line, {"arguments": [...], "out": FILE, "err": FILE, "where":
"trainer.module:function", "calls": N, "line": PYTHON}, and prints the exit code of each. `line` comes before the N-th
call of the function; no `where`, no disturbance.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...conftest import COMMAND_ENVIRONMENT, ROOT

SECONDS = 180
LOADED = ("trainer.cli", "trainer.run.start", "trainer.collapse.replay", "trainer.verbs.merge", "trainer.verbs.chat")

Disturbed = Callable[..., subprocess.CompletedProcess]


@contextmanager
def forked(folder: Path) -> Iterator[Disturbed]:
    """Starts that process; gives a function (where, calls, line, *arguments) that runs the command.

    Args:
        folder: for what the commands print.
    """
    command = [sys.executable, "-m", "tests.trainer.run.forked"]
    out, err = folder / "out", folder / "err"
    with subprocess.Popen(
        command, cwd=ROOT, env=COMMAND_ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None

        def run(where: str, calls: int, line: str, *arguments: object) -> subprocess.CompletedProcess:
            asked = {"where": where, "calls": calls, "line": line, "out": str(out), "err": str(err)}
            print(json.dumps(asked | {"arguments": [str(one) for one in arguments]}), file=server.stdin, flush=True)
            code = int(server.stdout.readline())
            return subprocess.CompletedProcess(arguments, code, out.read_text(), err.read_text())

        yield run
        server.stdin.close()


def main() -> int:
    """Answers until there is no more line."""
    for name in LOADED:
        importlib.import_module(f"lora_train.{name}")
    for line in sys.stdin:
        asked = json.loads(line)
        streams = [_into(Path(asked[name])) for name in ("out", "err")]
        child = os.fork()
        if child == 0:
            for number, stream in enumerate(streams, start=1):
                os.dup2(stream.stdin.fileno(), number)  # pyright: ignore[reportOptionalMemberAccess]
            return _run(asked)
        _, status = os.waitpid(child, 0)
        for stream in streams:
            stream.communicate()
        print(os.waitstatus_to_exitcode(status), flush=True)
    return 0


def _into(file: Path) -> subprocess.Popen:
    """A process that writes a file: the child's limits on files are not for what it prints."""
    with file.open("wb") as output:
        return subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=output)


def _run(asked: dict[str, Any]) -> int:
    from lora_train.trainer.cli import main as command

    signal.alarm(SECONDS)
    if asked["where"]:
        _disturb(*asked["where"].split(":"), asked["calls"], asked["line"])
    return command(asked["arguments"])


def _disturb(where: str, name: str, calls: int, line: str) -> None:
    module = importlib.import_module(f"lora_train.{where}")
    inner, called = getattr(module, name), 0

    def disturbed(*arguments: Any, **keywords: Any) -> Any:
        nonlocal called
        called += 1
        if called == calls:
            code = compile(line, "<line>", "exec")  # of a string, Python takes an interruption for one nobody caught
            exec(code, {"os": os, "signal": signal, "arguments": arguments})
        return inner(*arguments, **keywords)

    setattr(module, name, disturbed)


if __name__ == "__main__":
    sys.exit(main())
