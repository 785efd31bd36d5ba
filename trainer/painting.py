"""Judgements on a terminal: verdicts in colour and weight, long lines broken under their own beginning.

    loss  how surprised the model is ...
      WRONG     From step 13 on every forward pass was NaN or inf, which the Trainer's
                filter prints as loss 0

A pipe gets the lines as they are; FORCE_COLOR colours them there too, NO_COLOR nowhere.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable

from ..instrument.judge.explain.finding import TOPICS, VERDICTS
from ..instrument.messages import say_in
from .guide.wrapping import hanging, width

BOLD, DIM, RED, YELLOW, GREEN, CYAN = "1", "2", "1;31", "1;33", "32", "36"
STYLES = {"wrong": RED, "watch": YELLOW, "healthy": GREEN, "note": CYAN, "undecided": CYAN}
# "  WRONG     sentence": what begins a line, and the text behind it.
_LABELLED = re.compile(r"(\s*\S+(?: \S+)*?)(\s{2,})(\S.*)")
_COLUMNS = re.compile(r"\S\s{2,}\S")


def has_colour() -> bool:
    """Whether colours are wanted: NO_COLOR says no, FORCE_COLOR yes, else a terminal does."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or (sys.stdout.isatty() and os.environ.get("TERM") != "dumb")


def show(lines: Iterable[str], lang: str) -> None:
    """Prints lines."""
    columns, colour = width(), has_colour()
    styles = {say_in(lang, VERDICTS[verdict]).strip(): style for verdict, style in STYLES.items()}
    for line in lines:
        text = wrapped(line, columns)
        print(painted(text, styles) if colour else text)


def wrapped(line: str, columns: int | None) -> str:
    """A line broken between words; rows of tables stay whole."""
    found = _LABELLED.fullmatch(line)
    if columns is None or len(line) <= columns // 2:
        return line
    if found is None:
        indent = len(line) - len(line.lstrip())
        first, _, rest = line.strip().partition(" ")
        return hanging(" " * indent + first, rest, indent, columns) if rest else line
    label, gap, text = found.groups()
    if _COLUMNS.search(text):
        return line
    return hanging(label, text, len(label) + len(gap), columns)


def painted(text: str, styles: dict[str, str]) -> str:
    """A line with its first word in colour, where that is a verdict or a topic."""
    beginning, space, rest = re.match(r"(\s*)(.*?)(?=\s\s|$)", text, re.DOTALL), "", ""
    if beginning is None:
        return text
    space, word = beginning.groups()
    rest = text[beginning.end() :]
    if word in styles:
        style = styles[word]
        rest = f"\x1b[1m{rest}\x1b[0m" if style in (RED, YELLOW) else rest
        return f"{space}\x1b[{style}m{word}\x1b[0m{rest}"
    if not space and word in TOPICS:
        return f"\x1b[{BOLD}m{word}\x1b[0m\x1b[{DIM}m{rest}\x1b[0m"
    return text
