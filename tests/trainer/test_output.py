"""What is printed has no room: a full disk behind `lora-train ... > file`."""

from __future__ import annotations

import errno
import os
import shlex
import subprocess
import sys
from dataclasses import replace

import pytest
from lora_train.trainer import cli as cli_module
from lora_train.trainer.cli import main

from ..conftest import COMMAND_ENVIRONMENT, ROOT

STOCK, HEALTHY = ROOT / "tests" / "runs" / "stock", ROOT / "tests" / "runs" / "v0_1_0" / "healthy"


@pytest.mark.parametrize(
    "arguments",
    [
        ["explain", STOCK],
        ["explain", STOCK, "--json"],
        ["explain", "--what", "loss"],
        ["compare", STOCK, HEALTHY],
        ["inspect", HEALTHY / "checkpoint-4"],
        ["inspect", HEALTHY / "checkpoint-4", "--json"],
        ["advise", HEALTHY],
        ["schema"],
        ["import", HEALTHY / "checkpoint-4" / "adapter_config.json"],
        ["report", STOCK],
    ],
    ids=lambda arguments: " ".join(str(one).rpartition("/")[2] for one in arguments),
)
def test_every_verb_says_so_in_words(arguments, monkeypatch, capsys, tmp_path):
    arguments = [*arguments, "-o", tmp_path / "page.html"] if arguments[0] == "report" else arguments
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main([str(one) for one in arguments]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: what is printed could not be written: No space left on device\nhint: ")


@pytest.mark.parametrize(("stream", "code"), [("stdout", 1), ("stderr", 2)])
def test_the_interpreter_does_not_complain_once_more(stream, code):
    source = STOCK if stream == "stdout" else "nowhere"
    command = [sys.executable, "-m", "lora_train.trainer.cli", "explain", str(source)]
    with open("/dev/full", "w") as full:
        out, err = (full if stream == name else subprocess.PIPE for name in ("stdout", "stderr"))
        ended = subprocess.run(command, env=COMMAND_ENVIRONMENT, stdout=out, stderr=err, text=True, check=False)
    assert ended.returncode == code
    assert "Exception ignored" not in (ended.stderr or "")


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (errno.EACCES, 2, "error: adapter.bin cannot be opened: Permission denied\nhint: "),
        (errno.EROFS, 2, "error: adapter.bin cannot be opened: Read-only file system\nhint: "),
        (errno.ENOSPC, 1, "error: adapter.bin: No space left on device\nhint: "),
    ],
)
def test_a_file_that_nobody_may_open_or_that_has_no_room_is_named(number, code, said, monkeypatch, capsys):
    def refuse(_):
        raise OSError(number, os.strerror(number), "adapter.bin")

    monkeypatch.setitem(cli_module.VERBS, "ls", replace(cli_module.VERBS["ls"], run=refuse))
    assert main(["ls"]) == code
    assert capsys.readouterr().err.startswith(said)


@pytest.mark.parametrize(("closed", "code"), [(">&-", 0), ("2>&-", 0), (">&- 2>&- <&-", 0)])
def test_closed_streams_are_nothing(closed, code, tmp_path):
    words = [sys.executable, "-m", "lora_train.trainer.cli", "report", STOCK, "-o", tmp_path / "page.html"]
    command = f"{shlex.join(map(str, words))} {closed}"
    ended = subprocess.run(
        ["bash", "-c", command], env=COMMAND_ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (code, "")
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")
