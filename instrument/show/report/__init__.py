"""lora-train report: a run as one HTML file, offline and interactive. Imports no torch.

data.py reads a run into what a page shows: overview.py the first screen, charts.py the lines and marks, rows.py the
training rows; aggregate.py reduces the statistics to what a page can hold.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ...judge.explain import read_history
from ...read.files import write_text
from ..page import document
from ..page.people import run_name

if TYPE_CHECKING:
    from ...judge.row_score import Texts

SCRIPTS = ("layers/grid.js", "layers/paint.js", "layers/cell.js", "rows.js", "report.js", "live.js")


def write_report(
    *sources: Path, output: Path | None = None, following: bool = False, texts: Texts | None = None
) -> Path:
    """Writes the report of a run and returns its path.

    Args:
        sources: what `read_history` reads; several are parts of one run.
        output: None for report.html in the run folder (of a checkpoint's run, too), or beside the first file.
        texts: of the training rows, for a page that is to show them.

    Raises:
        SourceError: there is no run.
        OSError: it cannot be written.
    """
    from .data import report_data

    history = read_history(*sources)
    if output is None:
        beside = sources[0] if sources[0].is_dir() else sources[0].parent
        output = (history.run.path if history.run is not None else beside) / "report.html"
    write_text(output, document(run_name(history.name), report_data(history, following, texts=texts), SCRIPTS))
    return output
