"""Writes and reads a run on disk. Reading imports no torch.

metrics.jsonl holds one JSON object a line: a step, an evaluation, or the summary of a run. A value that is not
finite is written as null, never filtered. Every line carries `start`, the number of resumes so far; of a step
that was run twice the reader keeps the last.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1
METRICS = "metrics.jsonl"


class MetricsLog:
    """Appends lines to metrics.jsonl, each flushed, so that a killed run keeps all but the step in flight."""

    def __init__(self, run_dir: Path, start: int):
        self._start = start
        path = run_dir / METRICS
        _end_torn_line(path)
        self._file = path.open("a", encoding="utf-8")

    def write(self, values: dict[str, Any]) -> None:
        """Writes one line; floats that are not finite become null."""
        clean = {key: _finite_or_none(value) for key, value in {"start": self._start, **values}.items()}
        self._file.write(json.dumps(clean, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Syncs to disk and closes."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


def _end_torn_line(path: Path) -> None:
    """A kill can cut a line short; end it, so that the next line stands on its own."""
    if path.exists() and path.stat().st_size:
        with path.open("rb+") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_metrics(run_dir: str | Path) -> list[dict[str, Any]]:
    """All lines of a run in order, torn ones dropped, the last `start` of each step and evaluation kept."""
    kept: dict[tuple, dict[str, Any]] = {}
    for line in (Path(run_dir) / METRICS).read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        kind = "evaluation" if "eval_loss" in row else "summary" if "train_runtime" in row else "step"
        key = (kind, row.get("step"))
        kept.pop(key, None)
        kept[key] = row
    return list(kept.values())
