"""Runs as a board finds them: copies of recorded ones, some of them going on under a lock that a process holds."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from ...conftest import ROOT

RUNS = ROOT / "tests" / "runs"
HOSTILE = "<img src=x onerror=alert(1)>&\"' {{data}}"
"""The name of a folder; a file system allows it."""


def copy(to: Path, source: str = "healthy", lines: int | None = None) -> Path:
    """A recorded run, of which so many lines are kept; with a lock, as one of lora-train has."""
    shutil.copytree(RUNS / source, to)
    (to / ".lock").touch()
    if lines is not None:
        kept = metrics(source)[:lines]
        (to / "metrics.jsonl").write_text("".join(kept), encoding="utf-8")
    return to


def metrics(source: str = "healthy") -> list[str]:
    """The lines of a recorded run."""
    return (RUNS / source / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)


def append(run: Path, *lines: str | dict[str, Any]) -> None:
    """Appends to metrics.jsonl as a run does."""
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        for line in lines:
            file.write(line if isinstance(line, str) else json.dumps(line) + "\n")


@contextmanager
def held(run: Path) -> Iterator[None]:
    """The lock of a run is held, as while it trains."""
    run.mkdir(parents=True, exist_ok=True)
    with FileLock(run / ".lock"):
        yield


def until(true: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Waits for something to be true, and returns it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := true():
            return found
        time.sleep(0.05)
    raise AssertionError("never true")


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file with its size and time: what must be the same where nothing is written."""
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
    }
