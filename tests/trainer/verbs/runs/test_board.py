"""`lora-train board` as a user calls and ends it."""

from __future__ import annotations

import signal
import socket
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from ....instrument.board.build import copy, held, tree, until
from .process import Running


def processes_of(group: int) -> list[str]:
    """Command lines of the processes that a board started: they have its folder of modules."""
    from psutil import Process

    return [" ".join(child.cmdline()) for child in Process(group).children(recursive=True)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_ended_and_leaves_nothing(tmp_path, number):
    copy(tmp_path / "runs" / "a")
    before = tree(tmp_path / "runs")
    with Running("board", cwd=tmp_path, XDG_CACHE_HOME=str(tmp_path / "cache")) as board:
        address = board.line("board of runs: ").split()[-1]
        assert "ssh -L" in board.line("From another machine: ")
        assert b'"name":"a"' in urlopen(address).read()
        with pytest.raises(HTTPError, match="403"):
            urlopen(address.rsplit("/", 2)[0] + "/")
        children = until(lambda: processes_of(board.process.pid))
        assert len(children) == 1
        code, complaints = board.end(number)
    assert (code, complaints) == (0, "")
    assert board.line("closed") == "closed\n"
    with pytest.raises(OSError, match="refused"):
        urlopen(address)
    assert tree(tmp_path / "runs") == before


def test_it_ends_while_a_page_is_open(tmp_path):
    run = copy(tmp_path / "runs" / "a", lines=20)
    with held(run), Running("board", "runs", "--port", "0", cwd=tmp_path) as board:
        address = board.line("board of runs: ").split()[-1]
        stream = urlopen(f"{address}events?since=0")
        assert stream.readline().startswith(b"id: ")
        assert board.end(signal.SIGINT) == (0, "")


def test_the_folder_is_runs_or_this_one(tmp_path):
    copy(tmp_path / "a")
    with Running("board", cwd=tmp_path) as board:
        assert board.line("board of ").startswith(f"board of {tmp_path}: http://127.0.0.1:")
        board.end(signal.SIGTERM)


def test_mistakes_are_answered(cli, tmp_path):
    (tmp_path / "file").touch()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for arguments, error in (
            (("gone",), "error: there is no folder gone\nhint: name the folder that holds your runs"),
            (("file",), "error: file is a file, not a folder\nhint: "),
            ((".", "--port", port), f"error: 127.0.0.1:{port} cannot be served: Address already in use\nhint: "),
            ((".", "--port", "x"), "error: command line: argument --port: x is no number of a port"),
            ((".", "--port", "65536"), "error: command line: argument --port: 65536 is no number of a port"),
            (("a", "b"), "error: command line: unrecognized arguments: b"),
        ):
            result = cli("board", *arguments, cwd=tmp_path)
            assert result.returncode == 2, result.stdout
            assert result.stderr.startswith(error)
