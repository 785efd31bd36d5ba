"""`lora-train ls` in pipes, on terminals of any width, and for scripts."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
from fcntl import ioctl
from pathlib import Path
from termios import TIOCSWINSZ

import pytest
from lora_train.instrument.board.marks import FILE, Marks
from lora_train.instrument.board.table import cell_width

from ....conftest import COMMAND_ENVIRONMENT
from ....instrument.board.build import HOSTILE, copy, tree
from .process import PROGRAM


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    for name, source in (("a", "healthy"), ("deep/b", "overfitting"), ("c", "stock"), (HOSTILE, "v0_1_0/collapsed")):
        copy(folder / "runs" / name, source)
    copy(folder / "runs" / "killed", lines=20)
    Marks(folder / "runs").write("a", ["keep"], "the best one")
    return folder


def test_a_table_in_a_pipe(cli, folder):
    before = tree(folder)
    result = cli("ls", cwd=folder)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert len(lines) == 6
    assert lines[0].split()[0] == "run"
    assert "\x1b" not in result.stdout
    (own,) = [line for line in lines if line.startswith("a ")]
    assert re.search(r"ended .*2\.551  3\.457 @150 +healthy +150 .*keep$", own)
    assert any(line.startswith(HOSTILE) and "WRONG outcome" in line for line in lines)
    assert any(line.startswith("killed") and "crashed" in line for line in lines)
    assert tree(folder) == before
    assert cli("ls", "runs", cwd=folder).stdout == result.stdout
    assert cli("ls", "--lang", "ko", cwd=folder).stdout.splitlines()[0].split()[:2] == ["실행", "상태"]


def test_json_for_scripts(cli, folder):
    result = cli("ls", "runs", "--json", cwd=folder)
    rows = {row["name"]: row for row in json.loads(result.stdout)}
    assert set(rows) == {"a", "deep/b", "c", HOSTILE, "killed"}
    own = rows["deep/b"]
    assert own["path"] == str(folder / "runs" / "deep" / "b")
    assert own["verdict"] | {"sentence": ""} == {"verdict": "watch", "topic": "eval_loss", "sentence": ""}
    assert (own["step"], own["planned"], own["status"], own["error"]) == (120, 120, "ended", None)
    assert own["best"] == {"name": "eval_loss", "value": 2.2385, "step": 30}
    assert (rows["a"]["tags"], rows["a"]["note"]) == (["keep"], "the best one")
    assert rows["c"]["loss"] is None
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", own["changed"])


def on_terminal(folder: Path, width: int, **environment: str) -> str:
    """What a terminal of that width gets."""
    ours, theirs = pty.openpty()
    ioctl(theirs, TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    env = {name: value for name, value in COMMAND_ENVIRONMENT.items() if name not in ("COLUMNS", "NO_COLOR")}
    command = [sys.executable, "-c", PROGRAM, "ls"]
    process = subprocess.Popen(command, cwd=folder, env={**env, "TERM": "xterm", **environment}, stdout=theirs)
    os.close(theirs)
    parts = []
    while True:
        try:
            part = os.read(ours, 1 << 16)
        except OSError:  # Linux: nobody writes any more
            break
        if not part:
            break
        parts.append(part)
    os.close(ours)
    assert process.wait() == 0
    return b"".join(parts).decode().replace("\r\n", "\n")


@pytest.mark.parametrize("width", [40, 80, 160])
def test_a_terminal_has_colours_and_no_line_that_wraps(folder, width):
    text = on_terminal(folder, width)
    assert "\x1b[31;1mWRONG" in text
    plain = re.sub(r"\x1b\[[\d;]*m", "", text)
    assert max(map(cell_width, plain.splitlines())) <= width
    assert len(plain.splitlines()) == 6
    assert "\x1b" not in on_terminal(folder, width, NO_COLOR="1")


def test_a_folder_without_runs_and_one_that_is_not_there(cli, tmp_path):
    result = cli("ls", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (0, f"There is no run in {tmp_path}.\n")
    assert cli("ls", "--json", cwd=tmp_path).stdout == "[]\n"
    result = cli("ls", "gone", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("error: there is no folder gone\nhint: ")
    assert not (tmp_path / FILE).exists()


def test_a_reader_that_has_seen_enough_is_no_error(folder):
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(PROGRAM)} ls | head -n 1; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=COMMAND_ENVIRONMENT, capture_output=True, text=True
    )
    assert result.returncode in (0, 141)
    assert result.stderr == ""
