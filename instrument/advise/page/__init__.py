"""lora-train report STUDY: a study as one HTML file: its trials side by side, what each value reached, who died.

claims.py reads how trials ended; data.py is what the page holds. Imports no torch.
"""

from __future__ import annotations

from pathlib import Path

from ...read.files import write_text
from ...show.page import document
from .claims import CLAIMS, STUDY

SCRIPTS = ("drawing.js", "study.js")


def is_study(folder: Path) -> bool:
    """Whether a sweep was begun in this folder."""
    return (folder / STUDY).is_file() and (folder / CLAIMS).is_dir()


def write_study_page(folder: Path, output: Path | None = None) -> Path:
    """Writes the page of a study and returns its path.

    Args:
        output: None for report.html in the study's folder.

    Raises:
        SourceError: none of its trials says anything yet.
        OSError: it cannot be written.
    """
    from .data import study_data

    output = output or folder / "report.html"
    write_text(output, document(folder.resolve().name, study_data(folder), SCRIPTS))
    return output
