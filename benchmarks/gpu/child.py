"""A part's process: `python -m benchmarks.gpu.child NAME WORK UNTIL [--dry]`.

Imports the part's module, calls its `run(context)`, and keeps what it tells in WORK/NAME.json at every word, so that a
part that is killed has told what it knew. Exit code 0; 1 with a traceback or with checks that did not hold; SKIPPED.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .parts import PARTS

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


def main() -> int:
    """Runs the part."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.child")
    parser.add_argument("name", choices=[part.name for part in PARTS])
    parser.add_argument("work", type=Path)
    parser.add_argument("until", type=float)
    parser.add_argument("--dry", action="store_true")
    options = parser.parse_args()
    context = Context(options.name, options.dry, options.work, options.until)
    part = next(part for part in PARTS if part.name == options.name)
    try:
        row = importlib.import_module(f"{__package__}.{part.module or part.name}").run(context)
    except Skip as reason:
        context.end(str(reason))
        return SKIPPED
    except BaseException as error:
        traceback.print_exc()
        context.told["failures"].append(f"{type(error).__name__}: {error}")
        context.end("")
        return 1
    context.end(row)
    return int(bool(context.told["failures"]))


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a library's thread does not keep the process
