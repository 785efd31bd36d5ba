"""The addresses of a board.

    /                  the board                         /events?since=N    what changes in it, as a stream
    /run/<id>/         the report of a run               /run/<id>/events, /data           what is appended to it
    /study/<id>/       the page of a study               /compare?id=A&id=B    runs side by side
    /marks             POST {id, tags, note}

An id is a name for a run that was found: no part of an address is ever a path.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...messages import say
from ...read.history import SourceError
from ..marks import MarksError
from ..page import board_page
from ..watch import Board
from .server import JSON_TYPE, Answer, Stream, plain

HEARTBEAT, BATCH = 10.0, 0.5
"""Seconds after which a stream sees whether anybody listens, and between two pieces of one."""
MOST_COMPARED = 26
_PLACE = re.compile(r"(run|study)/([0-9a-f]{16})/(events|data)?")


class BoardSite:
    """Answers for a board.

    Args:
        board: what is under the folder.
    """

    def __init__(self, board: Board):
        self.board = board

    def get(self, path: str, query: Mapping[str, list[str]], last: str) -> Answer | Stream | None:
        """A page or a stream; None where there is nothing at this address."""
        if path == "":
            return self._board()
        if path == "events":
            return Stream(self._changes(number(last or query.get("since", ["0"])[0])))
        if path == "compare":
            return self._compare(query.get("id", []))
        place = _PLACE.fullmatch(path)
        row = self.board.row(place[2]) if place else None
        if place is None or row is None or row.one.kind != place[1]:
            return None
        if place[1] == "study":
            return None if place[3] else self._study(row.one.path)
        from .follow import run_answer, run_page  # pandas, which takes a second

        if place[3]:
            return run_answer(row.one.path, place[3], query, last)
        return run_page(row.one.path, back="../../")

    def post(self, path: str, body: Any) -> Answer | None:
        """Keeps tags and a note."""
        if path != "marks":
            return None
        if not isinstance(body, dict) or not isinstance(body.get("id"), str):
            return _json({"error": say("board.no_json")}, 400)
        try:
            kept = self.board.mark(body["id"], body.get("tags"), body.get("note"))
        except MarksError as error:
            return _json({"error": str(error)}, 409)
        except OSError as error:
            return _json(
                {"error": say("board.marks.cannot_write", path=self.board.marks.path, what=error.strerror)}, 500
            )
        return None if kept is None else _json(kept)

    def _board(self) -> Answer:
        version, rows = self.board.shown()
        folder = self.board.root.resolve().name or "/"
        page, policy = board_page(folder, {"folder": folder, "version": version, "rows": rows})
        return Answer(page, policy=policy)

    def _changes(self, since: int) -> Iterator[tuple[str, Any, str] | None]:
        while not self.board.closed:
            found = self.board.changes(since, HEARTBEAT)
            if found is None:
                yield None
                continue
            since, change = found
            yield "change", change, str(since)
            time.sleep(BATCH)

    def _study(self, path: Path) -> Answer:
        from ...advise.page import SCRIPTS
        from ...advise.page.data import study_data
        from .follow import served

        try:
            return served(path.resolve().name, study_data(path), SCRIPTS, back="../../")
        except SourceError as error:
            return plain(404, say(error.key, **error.values))

    def _compare(self, ids: list[str]) -> Answer:
        from ...judge.explain import read_history
        from ...show.compare import compare_runs
        from ...show.compare.overlay import SCRIPTS, comparison_data
        from .follow import served

        rows = [row for id in dict.fromkeys(ids) if (row := self.board.row(id)) is not None and row.one.kind == "run"]
        if not 2 <= len(rows) <= MOST_COMPARED:
            return plain(404, say("board.page.compare_how", most=MOST_COMPARED))
        try:
            data = comparison_data(compare_runs([read_history(row.one.path) for row in rows]))
        except SourceError as error:
            return plain(404, say(error.key, **error.values))
        return served(" / ".join(run["name"] for run in data["runs"]), data, SCRIPTS, back="./")


def number(text: str) -> int:
    """A version; 0 where it is none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else 0


def _json(value: Any, status: int = 200) -> Answer:
    return Answer(json.dumps(value), JSON_TYPE, status)
