"""What was appended to a metrics.jsonl since it was read last: only the new bytes are read.

A line that is not ended yet waits; one that is no JSON is left out. A file that became shorter, was replaced, or whose
bytes before the place that was reached are others, is to be read anew.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from ..read.damaged import parse_own_json
from ..read.files import open_own
from ..read.schema import kind_of

CHUNK = 1 << 22
REMEMBERED = 64
"""Bytes before the place that was reached, by which the file is known again."""


class Tail:
    """Follows a file of lines.

    Args:
        path: of the file, which need not be there.
        offset: bytes that are known already; None: all that is there.
    """

    def __init__(self, path: Path, offset: int | None = 0):
        self.path, self.offset = path, offset or 0
        self._before, self._identity = b"", (0, 0)
        if offset is None:
            self._skip()

    def _skip(self) -> None:
        try:
            with open_own(self.path) as file:
                facts = os.fstat(file.fileno())
                file.seek(max(0, facts.st_size - CHUNK))
                data = file.read(CHUNK)
        except OSError:
            return
        self._identity = (facts.st_dev, facts.st_ino)
        whole = data[: data.rfind(b"\n") + 1]
        self.offset = facts.st_size - len(data) + len(whole)
        self._before = whole[-REMEMBERED:]

    def read(self) -> list[dict[str, Any]] | None:
        """The new lines that are mappings; None where the file is another one now."""
        try:
            with open_own(self.path) as file:
                facts = os.fstat(file.fileno())
                if self._identity not in ((0, 0), (facts.st_dev, facts.st_ino)) or facts.st_size < self.offset:
                    return None
                self._identity = (facts.st_dev, facts.st_ino)
                file.seek(self.offset - len(self._before))
                data = file.read(len(self._before) + CHUNK)
        except OSError:
            return []
        if not data.startswith(self._before):
            return None
        data = data[len(self._before) :]
        end = data.rfind(b"\n") + 1
        if not end and len(data) >= CHUNK:  # no line of ours
            end = len(data)
        self.offset += end
        self._before = (self._before + data[:end])[-REMEMBERED:]
        return [row for line in data[:end].splitlines() if (row := row_of(line)) is not None]


def row_of(line: bytes) -> dict[str, Any] | None:
    """The mapping that a line is; None of anything else."""
    try:
        row = parse_own_json(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def points(rows: list[dict[str, Any]]) -> list[list[float | None]]:
    """[step, loss] of lines that are steps; null where the loss is not finite."""
    found: list[list[float | None]] = []
    for row in rows:
        step = row.get("step")
        if kind_of(row) == "step" and isinstance(step, int) and not isinstance(step, bool):
            found.append([step, _finite(row.get("loss"))])
    return found


def _finite(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None
