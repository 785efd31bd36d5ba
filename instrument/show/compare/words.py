"""Numbers and settings as people write them: 10,212 for 1.021e+04, 1e-5 for 1e-05, true for True, a, b for a list."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

MISSING = "-"
_EXPONENT = re.compile(r"e([+-])0*(\d+)$")


def number(value: float, digits: int = 4) -> str:
    """So many digits that count, thousands set apart, no padded exponent."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if not math.isfinite(value):
        return MISSING
    if isinstance(value, int):
        return f"{value:,}"
    if 1000 <= abs(value) < 1e15 and abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return _EXPONENT.sub(lambda match: f"e{match[1].replace('+', '')}{match[2]}", f"{value:.{digits}g}")


def setting(value: Any) -> str:
    """A value of a configuration, as its file has it."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return number(value, 6)
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, (list, tuple)):
        return ", ".join(map(setting, value)) or MISSING
    if isinstance(value, dict):
        return ", ".join(f"{key}: {setting(item)}" for key, item in value.items()) or MISSING
    return str(value)


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
