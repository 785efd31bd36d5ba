"""What a part is handed, and how it tells what it found: everything goes to WORK/NAME.json at once."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SKIPPED = 77
ROOT = Path(__file__).resolve().parents[2]


class Skip(Exception):
    """The part cannot be run on this machine; the message says why."""


@dataclass
class Context:
    """What a part is handed.

    Attributes:
        dry: whether there is no GPU and everything is tiny.
        work: a folder that all parts share and that is thrown away at the end.
        until: when the part is killed, as time.time() counts.
    """

    name: str
    dry: bool
    work: Path
    until: float
    told: dict[str, Any] = field(default_factory=lambda: {"numbers": {}, "lines": [], "failures": []})

    @property
    def folder(self) -> Path:
        """A folder of the part's own."""
        folder = self.work / f"part-{self.name}"
        folder.mkdir(exist_ok=True)
        return folder

    @property
    def seconds_left(self) -> float:
        """Until the part is killed."""
        return self.until - time.time()

    def number(self, **numbers: Any) -> None:
        """Keeps numbers for results.jsonl."""
        self.told["numbers"].update(numbers)
        self._keep()

    def line(self, text: str) -> None:
        """A line under the part's row of the table."""
        print(text, flush=True)
        self.told["lines"].append(text)
        self._keep()

    def check(self, holds: bool, text: str) -> None:
        """Notes a promise that is not kept; the part goes on and fails at its end."""
        print(f"{'ok' if holds else 'FAILED'}  {text}", flush=True)
        if not holds:
            self.told["failures"].append(text)
            self._keep()

    def numbers_of(self, part: str) -> dict[str, Any]:
        """What an earlier part measured; nothing if it did not run."""
        path = self.work / f"{part}.json"
        return json.loads(path.read_text(encoding="utf-8"))["numbers"] if path.exists() else {}

    def _keep(self) -> None:
        path = self.work / f"{self.name}.json"
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(self.told, ensure_ascii=False), encoding="utf-8")
        fresh.replace(path)

    def end(self, row: str) -> None:
        """Sets what the table says of the part."""
        self.told["row"] = row
        self._keep()
