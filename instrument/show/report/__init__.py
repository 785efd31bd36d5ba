"""lora-train report: a run as one HTML file, offline and interactive. Imports no torch.

data.py reads a run into what a page shows, aggregate.py reduces the statistics to what a page can hold.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from ...judge.explain import read_history
from ...read.store import METRICS, STATS, write_text
from ..page import document, plotly_js

FOLLOW_SECONDS = 5.0


def write_report(source: Path, output: Path | None = None, following: bool = False) -> Path:
    """Writes the report of a run and returns its path.

    Args:
        source: what `read_history` reads.
        output: None for report.html in the run folder, or beside the file.

    Raises:
        SourceError: there is no run.
        NoPlotly: plotly is missing.
        OSError: it cannot be written.
    """
    from .data import report_data

    plotly_js()
    history = read_history(source)
    output = output or (source if source.is_dir() else source.parent) / "report.html"
    write_text(output, document(history.name, report_data(history, following), "report.js"))
    return output


def follow(source: Path, output: Path | None, wrote: Callable[[Path], None]) -> None:
    """Writes the report again whenever the run has gone on, until it has ended or the user does.

    Args:
        wrote: called after each time.
    """
    seen: tuple[float, ...] | None = None
    while True:
        now = tuple(path.stat().st_mtime for path in (source / METRICS, source / STATS) if path.exists())
        if now != seen:
            seen = now
            path = write_report(source, output, following=True)
            wrote(path)
            history = read_history(source)
            if history.finished or any(incident["action"] == "stop" for incident in history.incidents):
                return
        time.sleep(FOLLOW_SECONDS)
