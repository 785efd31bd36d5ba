"""lora-train report: a run as one HTML file, offline and interactive. Imports no torch.

data.py reads a run into what a page shows: overview.py the first screen, charts.py the lines and marks; aggregate.py
reduces the statistics to what a page can hold.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from ...judge.explain import read_history
from ...read.store import METRICS, SITES, STATS, write_text
from ..page import document
from ..page.people import run_name

FOLLOW_SECONDS = 5.0
WAIT_SECONDS = 1.0
SCRIPTS = ("layers/grid.js", "layers/paint.js", "layers/cell.js", "report.js", "live.js")
# What a run folder may hold before its first step.
BEFORE_THE_FIRST_STEP = ("config.yaml", "env.json", ".lock")


def write_report(*sources: Path, output: Path | None = None, following: bool = False) -> Path:
    """Writes the report of a run and returns its path.

    Args:
        sources: what `read_history` reads; several are parts of one run.
        output: None for report.html in the run folder, or beside the first file.

    Raises:
        SourceError: there is no run.
        OSError: it cannot be written.
    """
    from .data import report_data

    history = read_history(*sources)
    output = output or (sources[0] if sources[0].is_dir() else sources[0].parent) / "report.html"
    write_text(output, document(run_name(history.name), report_data(history, following), SCRIPTS))
    return output


def follow(source: Path, output: Path | None, wrote: Callable[[Path], None], waits: Callable[[Path], None]) -> None:
    """Writes the report again whenever the run has gone on, until it has ended or the user does.

    Args:
        source: the folder of a run, which need not be there yet.
        wrote: called after the first time.
        waits: called once if the run has not begun.
    """
    if not _begun(source):
        waits(source)
        while not _begun(source):
            time.sleep(WAIT_SECONDS)
    seen: tuple[float, ...] | None = None
    while True:
        now = tuple(path.stat().st_mtime for path in (source / METRICS, source / STATS) if path.exists())
        if now != seen:
            path = write_report(source, output=output, following=True)
            if seen is None:
                wrote(path)
            seen = now
            history = read_history(source)
            if history.finished or any(incident["action"] == "stop" for incident in history.incidents):
                return
        time.sleep(FOLLOW_SECONDS)


def _begun(source: Path) -> bool:
    """Whether there is something to read, be it that this is no run at all."""
    if any((source / name).is_file() for name in (METRICS, SITES)):
        return True
    return source.is_dir() and any(child.name not in BEFORE_THE_FIRST_STEP for child in source.iterdir())
