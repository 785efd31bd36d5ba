"""`lora-train board [FOLDER]`: all runs under a folder as a page on this machine, until Ctrl-C."""

from __future__ import annotations

import shlex
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path

from ....instrument.messages import say
from ...errors import UserError, problem

DEFAULT, POLL = Path("runs"), 0.5


def add_arguments(parser: ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("folder", metavar="FOLDER", type=Path, nargs="?", help=say("cli.board.folder"))
    parser.add_argument("--port", type=port, metavar="N", help=say("cli.board.port"))


def run(arguments: Namespace) -> int:
    """Serves the page until Ctrl-C or SIGTERM, which are how it ends: 0.

    Raises:
        UserError: there is no such folder, or the port is taken.
    """
    folder = folder_of(arguments.folder)
    try:
        return _serve(folder, arguments.port)
    except KeyboardInterrupt:
        return 0


def _serve(folder: Path, number: int | None) -> int:
    from ....instrument.board.serve.server import Server
    from ....instrument.board.serve.site import BoardSite
    from ....instrument.board.watch import Board

    board = Board(folder)
    try:
        server = Server(BoardSite(board), number)
    except OSError as error:
        raise UserError(problem("board.no_port", address=error.filename, what=error.strerror)) from error
    board.start()
    try:
        with server.running():
            print(say("board.serving", folder=folder, address=server.address), flush=True)
            print(say("board.remote", port=server.server_port), flush=True)
            while True:  # a signal that another thread received is seen when this one next runs
                time.sleep(POLL)
    except KeyboardInterrupt:
        print(say("board.closed"), flush=True)
    finally:
        board.close()
    return 0


def folder_of(given: Path | None) -> Path:
    """The folder that is meant: the one that is named, else runs, else this one.

    Raises:
        UserError: it is none.
    """
    folder = given or (DEFAULT if DEFAULT.is_dir() else Path.cwd())
    if not folder.is_dir():
        told = "board.is_file" if folder.exists() else "board.no_folder"
        raise UserError(problem(told, folder=folder, quoted=shlex.quote(str(folder))))
    return folder


def port(text: str) -> int:
    """A number of a port."""
    if not (text.isascii() and text.isdigit() and len(text) < 6 and int(text) < 1 << 16):
        raise ArgumentTypeError(say("board.no_number", value=text))
    return int(text)
