"""Lines and tables of the terminal: lists of the first few, columns set by the width of Korean letters."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence


def listed(names: Sequence[str], values: Sequence[str], most: int = 6) -> str:
    """ "A 1.5, B 1.8" of the first few, and how many more."""
    text = ", ".join(f"{name} {value}" for name, value in list(zip(names, values, strict=True))[:most])
    return f"{text} (+{len(names) - most})" if len(names) > most else text


def width(text: str) -> int:
    """Columns on a terminal: Korean letters take two."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of a table as lines, columns two spaces apart."""
    widths = [max(width(row[at]) for row in rows) for at in range(len(rows[0]))]
    return ["  ".join(cell + " " * (widths[at] - width(cell)) for at, cell in enumerate(row)).rstrip() for row in rows]
