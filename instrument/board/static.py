"""The rows of a folder in a notebook's cell: a table that needs no server and no script. Imports no torch.

from lora_train.instrument import show_runs
show_runs("runs")
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..messages import language, say_in
from .table import COLUMNS, HEADS, cells_of, table
from .watch import Board

SHOWN = tuple(name for name in COLUMNS if name != "curve")
WIDE, HIGH = 110, 24
WORDS = {"wrong": "#cf222e", "watch": "#9a6700", "healthy": "#1a7f37", "undecided": "#0969da", "note": "#0969da"}
"""Colours of verdicts, each readable on white; a dark notebook keeps them on a light ground of their own."""
CELL = "text-align:left;vertical-align:top;padding:3px 12px 3px 0;overflow-wrap:anywhere"


class Runs:
    """What is under a folder, as it was when it was asked for; a notebook shows it as a table.

    Attributes:
        rows: one mapping a run or study, the newest first, as the page of the board is told.
    """

    def __init__(self, rows: Sequence[dict[str, Any]]):
        self.rows = list(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return "\n".join(table(self.rows, language())) or say_in(language(), "board.page.no_match")

    def _repr_html_(self) -> str:
        return html_table(self.rows, language())


def show_runs(folder: str | Path = "runs") -> Runs:
    """All runs and studies under a folder, at any depth, the newest first.

    Args:
        folder: where they lie; nothing is written there.

    Raises:
        NotADirectoryError: there is no such folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise NotADirectoryError(f"there is no folder {root}")
    board = Board(root)
    board.fill(lambda done, total: None)
    board.close()
    return Runs(sorted(board.shown()[1], key=lambda row: -row["date"]))


def html_table(rows: Sequence[dict[str, Any]], lang: str) -> str:
    """The rows as HTML without scripts, links and styles of the page."""
    if not rows:
        return f"<p>{escape(say_in(lang, 'board.page.no_match'))}</p>"
    shown = [name for name in SHOWN if name != "tags" or any(row.get("tags") for row in rows)]
    heads = "".join(f'<th scope="col" style="{CELL}">{escape(say_in(lang, HEADS[name]))}</th>' for name in shown)
    lines = "".join(f"<tr>{''.join(_cell(name, row, lang) for name in shown)}</tr>" for row in rows)
    label = escape(say_in(lang, "board.page.runs"))
    return (
        f'<table aria-label="{label}" lang="{lang}" style="border-collapse:collapse;font-variant-numeric:tabular-nums">'
        f"<thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table>"
    )


def _cell(name: str, row: dict[str, Any], lang: str) -> str:
    text = escape(cells_of(row, lang)[name])
    if name == "name":
        return f'<th scope="row" style="{CELL}"><bdi>{text}</bdi></th>'
    if name == "loss":
        text = picture(row.get("spark") or [[], []], text)
    if name == "verdict" and row.get("verdict"):
        verdict = row["verdict"]
        colour, sentence = WORDS[verdict["verdict"]], escape(verdict["sentence"][lang])
        text = f'<b style="color:{colour};background:#fff;padding:0 3px">{text}</b><br><small>{sentence}</small>'
    return f'<td style="{CELL}">{text}</td>'


def picture(spark: Sequence[Sequence[float | None]], text: str) -> str:
    """The loss as a line of WIDE x HIGH with its last value; a gap where it is not finite."""
    steps, losses = spark
    known = [value for value in losses if value is not None]
    if not known:
        return text
    first, across = steps[0] or 0, ((steps[-1] or 0) - (steps[0] or 0)) or 1
    low, size = min(known), (max(known) - min(known)) or 1.0
    path, before = [], False
    for step, value in zip(steps, losses, strict=True):
        if value is not None and step is not None and math.isfinite(value):
            x, y = (step - first) / across * WIDE, 2 + (1 - (value - low) / size) * (HIGH - 4)
            path.append(f"{'L' if before else 'M'}{x:.1f} {y:.1f}")
        before = value is not None
    return (
        f'<svg width="{WIDE}" height="{HIGH}" viewBox="0 0 {WIDE} {HIGH}" aria-hidden="true">'
        f'<path d="{"".join(path)}" fill="none" stroke="#0969da" stroke-width="1.4"/></svg> {text}'
    )
