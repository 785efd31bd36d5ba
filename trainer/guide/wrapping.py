"""Lines that fit a terminal: broken between words, later ones indented. A pipe gets whole lines, as grep wants them."""

from __future__ import annotations

import shutil
import sys

from rich.cells import cell_len

NARROWEST = 40


def width() -> int | None:
    """Columns to fill; None: whole lines."""
    return max(NARROWEST, shutil.get_terminal_size().columns) if sys.stdout.isatty() else None


def hanging(label: str, text: str, indent: int, columns: int | None) -> str:
    """`label` and behind it `text`, whose lines begin at column `indent`. Korean letters take two columns.

    Args:
        label: at most `indent` columns are kept free for it; a longer one moves the text.
        columns: of the terminal; None: no line is broken.
    """
    gap = " " * max(1, indent - cell_len(label))
    if columns is None:
        return f"{label}{gap}{text}"
    lines, line, begun = [], label + gap, False
    if indent > columns // 2:  # the label has a line of its own
        indent = columns // 8
        lines, line = [label], " " * indent
    for word in text.split(" "):
        if cell_len(line) + begun + cell_len(word) > columns and line.strip():
            lines.append(line.rstrip())
            line, begun = " " * indent, False
        line = f"{line} {word}" if begun else line + word
        begun = True
    return "\n".join([*lines, line])
