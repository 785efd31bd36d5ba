"""`lora-train report --follow RUN`: the page of a run on this machine, growing as the run does; written at its end."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from ....instrument.messages import say
from ...errors import UserError, problem

if TYPE_CHECKING:
    from ....instrument.judge.row_score import Texts

ReadTexts: TypeAlias = "Callable[[Path], Texts | None]"
POLL, PATIENCE = 1.0, 30.0


def follow(source: Path, output: Path | None, read_texts: ReadTexts | None = None) -> Path:
    """Serves the page until the run has ended or the user ends it, and writes it then.

    Args:
        source: the folder of a run, which need not be there yet.
        output: None for report.html in it.
        read_texts: reads texts of the training rows for the page that is written, and not for the one that is served.

    Raises:
        SourceError: it holds something else than a run.
        OSError: the page cannot be written.
        KeyboardInterrupt: before the run had begun.
    """
    from ....instrument.board.serve.follow import RunSite, begun
    from ....instrument.board.serve.server import Server
    from ....instrument.read.logs import read_history

    if begun(source):
        read_history(source)  # says at once where it is no run
        if is_over(source):
            return _write(source, output, read_texts)
    try:
        server = Server(RunSite(source), None)
    except OSError as error:
        raise UserError(problem("board.no_port", address=error.filename, what=error.strerror)) from error
    with server.running():
        try:
            print(say("report.serving", path=source, address=server.address), flush=True)
            print(say("board.remote", port=server.server_port), flush=True)
            if not begun(source):
                print(say("report.waiting", path=source), flush=True)
                while not begun(source):
                    time.sleep(POLL)
                read_history(source)
            while not is_over(source):
                time.sleep(POLL)
            server.settle(PATIENCE)  # open pages ask for the end
        except KeyboardInterrupt:  # at any moment: what there is, is written
            if not begun(source):
                raise
    return _write(source, output, read_texts)


def _write(source: Path, output: Path | None, read_texts: ReadTexts | None) -> Path:
    from ....instrument.show.report import write_report

    return write_report(source, output=output, texts=None if read_texts is None else read_texts(source))


def is_over(source: Path) -> bool:
    """Whether the run has ended or stopped. One that was killed may go on: it is waited for."""
    from ....instrument.board.card import peek
    from ....instrument.read.lock import is_held
    from ....instrument.read.logs.run_folder import incidents_of

    if is_held(source):
        return False
    return bool(peek(source).get("finished")) or any(one["action"] == "stop" for one in incidents_of(source))
