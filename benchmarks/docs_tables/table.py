"""A table in Markdown, and the note under a page that is made."""

from __future__ import annotations

NOTE = "\n<!-- Written by `make docs-tables` from {source}: change it there. -->\n"


def table(rows: list[tuple[str, ...]]) -> str:
    """Markdown; the first row is the head."""
    lines = ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _cell(text: str) -> str:
    """`<name>` is no HTML, and a bar ends no cell; between backticks the first is as it stands."""
    parts = text.replace("|", "\\|").split("`")
    return "`".join(part if i % 2 else part.replace("<", "&lt;") for i, part in enumerate(parts))
