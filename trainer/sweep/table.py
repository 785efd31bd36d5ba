"""A study as a table that grows by a row as a trial ends: what it varied, what it reached, or why it died."""

from __future__ import annotations

from typing import Any

from rich.cells import cell_len

from ...instrument.messages import say
from ...instrument.show.page.people import number, setting
from ..console import duration
from .folder import Attempt

LEAST = 9
"""Columns of a value."""


class Table:
    """Prints itself row by row.

    Attributes:
        keys: what trials vary.
        metric: what they are judged by.
    """

    def __init__(self, keys: list[str], metric: str):
        self.keys = keys
        self.heads = [say("sweep.table.trial"), *(key.rpartition(".")[2] for key in keys), metric,
                      say("sweep.table.step"), say("sweep.table.time"), say("sweep.table.end")]  # fmt: skip
        self.widths = [max(LEAST, cell_len(head)) for head in self.heads]
        self.widths[0] = max(7, cell_len(self.heads[0]))

    def head(self) -> str:
        """The first line."""
        return self._line(self.heads)

    def row(self, attempt: Attempt, settings: dict[str, Any], outcome: dict[str, Any]) -> str:
        """A trial."""
        ended = outcome.get("ended", "crash")
        end = say(f"sweep.ended.{ended}")
        if why := outcome.get("why"):
            end += f": {why}"
        values = [setting(settings.get(key)) for key in self.keys]
        step = outcome.get("step")
        cells = [attempt.name, *values, number(outcome.get("value")), "–" if step is None else f"{step:,}"]
        return self._line([*cells, duration(outcome.get("seconds") or 0), end])

    def _line(self, cells: list[str]) -> str:
        return "  ".join(cell + " " * (w - cell_len(cell)) for cell, w in zip(cells, self.widths, strict=True)).rstrip()
