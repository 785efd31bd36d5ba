"""Rows as text: a table that fits the width, the least important columns going first. Imports no torch."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from ..judge.explain.finding import VERDICTS, clock
from ..messages import say_in
from ..show.page.people import UNKNOWN, number

COLUMNS = ("name", "state", "curve", "loss", "best", "verdict", "steps", "time", "date", "tags")
HEADS = {name: f"board.page.column.{name}" for name in COLUMNS} | {"curve": "", "tags": "board.ls.tags"}
LEAVE = ("tags", "curve", "time", "date", "steps", "loss", "best")
"""In which order columns go where there is no room."""
RIGHT = ("loss", "steps", "time")
SHORTEST_NAME, GAP = 12, 2
BARS, CURVE = "▁▂▃▄▅▆▇█", 12
LOST = "×"
COLOURS = {"wrong": "31;1", "watch": "33", "healthy": "32", "crashed": "31", "stopped": "33", "running": "34"}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
STATUSES = {
    "running": "board.status.running",
    "ended": "board.status.ended",
    "stopped": "board.status.stopped",
    "crashed": "board.status.crashed",
    "unfinished": "board.status.unfinished",
}


def table(rows: Sequence[dict[str, Any]], lang: str, width: int | None = None, colour: bool = False) -> list[str]:
    """A line of heads and a line a row; none of no rows.

    Args:
        rows: as `Board.shown` gives them.
        width: columns of the terminal; None: as wide as it has to be, nothing is cut off.
        colour: whether states and verdicts have colours.
    """
    if not rows:
        return []
    cells = [cells_of(row, lang) for row in rows]
    heads = {name: say_in(lang, HEADS[name]) if HEADS[name] else "" for name in COLUMNS}
    shown = [name for name in COLUMNS if any(own[name] for own in cells)]
    widths = {name: max(cell_width(text) for text in [heads[name], *(own[name] for own in cells)]) for name in shown}
    if width is not None:
        shown, widths = _fitted(shown, widths, width)
    lines = [_line(heads, shown, widths, lambda name, text: _painted(text, "2") if colour else text)]
    for row, own in zip(rows, cells, strict=True):
        kinds = {"state": row["status"], "verdict": (row.get("verdict") or {}).get("verdict", "")}

        def paint(name: str, text: str, kinds: dict[str, str] = kinds) -> str:
            code = COLOURS.get(kinds.get(name, "")) if colour else None
            return _painted(text, code) if code else text

        lines.append(_line(own, shown, widths, paint))
    return lines


def _fitted(shown: list[str], widths: dict[str, int], width: int) -> tuple[list[str], dict[str, int]]:
    """Without the columns that have no room; what is left over is the name's."""

    def rest() -> int:
        return width - sum(widths[name] + GAP for name in shown if name != "name")

    for name in LEAVE:
        if rest() >= min(widths["name"], SHORTEST_NAME + 8):
            break
        shown = [one for one in shown if one != name]
    return shown, {**widths, "name": min(widths["name"], max(SHORTEST_NAME, rest()))}


def _line(cells: dict[str, str], shown: Sequence[str], widths: dict[str, int], paint: Any) -> str:
    parts = []
    for name in shown:
        text = shortened(cells[name], widths[name])
        room = " " * (widths[name] - cell_width(text))
        parts.append(room + paint(name, text) if name in RIGHT else paint(name, text) + room)
    return (" " * GAP).join(parts).rstrip()


def _painted(text: str, code: str) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if text else text


def cells_of(row: dict[str, Any], lang: str) -> dict[str, str]:
    """What stands in each column of a row."""
    best, verdict, error = row.get("best"), row.get("verdict"), row.get("error")
    step, planned = row.get("step"), row.get("planned")
    said = ""
    if error:
        said = error[lang]
    elif verdict:
        topic = "" if verdict["topic"] == "overall" else f" {verdict['topic']}"
        said = say_in(lang, VERDICTS[verdict["verdict"]]).strip() + topic
    steps = "" if step is None else number(step)
    if row["kind"] == "study":
        steps = say_in(lang, "board.ls.trials", ended=row.get("ended", 0), n=row.get("trials", 0))
    elif planned and planned != step:
        steps = f"{steps}/{number(planned)}"
    found = {
        "name": row["name"],
        "state": say_in(lang, STATUSES[row["status"]]),
        "curve": curve((row.get("spark") or [[], []])[1]),
        "loss": number(row.get("loss")) if row["kind"] == "run" else "",
        "best": _best(best),
        "verdict": said,
        "steps": steps,
        "time": UNKNOWN if row.get("seconds") is None else clock(row["seconds"]),
        "date": datetime.fromtimestamp(row["date"] / 1000).strftime("%Y-%m-%d %H:%M"),
        "tags": ", ".join(row.get("tags") or ()),
    }
    return {name: _CONTROL.sub("\ufffd", text) for name, text in found.items()}


def _best(best: dict[str, Any] | None) -> str:
    if best is None:
        return UNKNOWN
    name = "" if best["name"] == "eval_loss" else f"{best['name'].removeprefix('eval_')} "
    return f"{name}{number(best['value'])}" + ("" if best["step"] is None else f" @{number(best['step'])}")


def curve(losses: Sequence[float | None]) -> str:
    """CURVE bars; × where the loss is not finite."""
    width = max(1, math.ceil(len(losses) / CURVE))
    parts = [[v for v in losses[at : at + width] if v is not None] for at in range(0, len(losses), width)]
    means = [sum(own) / len(own) if own else None for own in parts]
    known = [value for value in means if value is not None]
    if not known:
        return LOST * len(means)
    low, size = min(known), (max(known) - min(known)) or 1.0
    return "".join(LOST if value is None else BARS[round((value - low) / size * (len(BARS) - 1))] for value in means)


def cell_width(text: str) -> int:
    """Columns of a terminal: two for a Korean, Chinese or Japanese character, none for a mark over another one."""
    return sum(
        0 if unicodedata.combining(one) else 2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in text
    )


def shortened(text: str, width: int) -> str:
    """A text of that width at most, with … in its middle."""
    if cell_width(text) <= width:
        return text
    left, right = (width - 1) // 2, width - 1 - (width - 1) // 2
    return _cut(text, left) + "…" + _cut(text[::-1], right)[::-1]


def _cut(text: str, width: int) -> str:
    kept, used = [], 0
    for one in text:
        used += cell_width(one)
        if used > width:
            break
        kept.append(one)
    return "".join(kept)
