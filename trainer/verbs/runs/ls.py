"""`lora-train ls [FOLDER]`: all runs under a folder as a table."""

from __future__ import annotations

import json
import os
import shutil
import sys
from argparse import ArgumentParser, Namespace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ....instrument.board.find import Found, readable
from ....instrument.messages import LANGUAGES, language, say
from .board import folder_of


def add_arguments(parser: ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("folder", metavar="FOLDER", type=Path, nargs="?", help=say("cli.board.folder"))
    parser.add_argument("--json", action="store_true", help=say("cli.ls.json"))
    parser.add_argument("--lang", choices=LANGUAGES, default=language(), help=say("cli.lang"))


def run(arguments: Namespace) -> int:
    """Prints the table, the newest run first.

    Raises:
        UserError: there is no such folder.
    """
    from ....instrument.board.watch import Board

    folder = folder_of(arguments.folder)
    board = Board(folder)
    try:
        board.fill(_progress)
    finally:
        _progress(0, 0)
        board.close()
    rows = sorted(board.shown()[1], key=lambda row: -row["date"])
    if arguments.json:
        found = {row.one.id: row.one for row in board.rows.values()}
        print(json.dumps([_plain(row, found, arguments.lang) for row in rows], ensure_ascii=False, indent=1))
        return 0
    if not rows:
        print(say("board.ls.none", folder=folder))
        return 0
    from ....instrument.board.table import table

    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else None
    colour = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    print("\n".join(table(rows, arguments.lang, width, colour)))
    return 0


def _progress(done: int, total: int) -> None:
    """How far it is, on a terminal; of nothing: no longer."""
    if sys.stderr.isatty():
        text = say("board.ls.reading", n=done, total=total) if total else ""
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def _plain(row: dict[str, Any], found: dict[str, Found], lang: str) -> dict[str, Any]:
    """A row for scripts; times as ISO 8601."""
    verdict, error, started = row.get("verdict"), row.get("error"), row.get("started")
    own, study = found[row["id"]], found.get(row["study"])
    return {
        "name": row["name"],
        "path": readable(str(own.path.absolute())),
        "kind": row["kind"],
        "study": None if study is None else study.name,
        "status": row["status"],
        "step": row.get("step"),
        "planned": row.get("planned"),
        "loss": row.get("loss"),
        "best": row.get("best"),
        "verdict": None if verdict is None else {**verdict, "sentence": verdict["sentence"][lang]},
        "error": None if error is None else error[lang],
        "seconds": row.get("seconds"),
        "started": None if started is None else _iso(started),
        "changed": _iso(own.changed),
        "tags": row["tags"],
        "note": row["note"],
        **{name: row[name] for name in ("trials", "ended", "dead") if name in row},
    }


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")
