"""`lora-train import FILE`: another trainer's configuration as one of ours, with comments. Imports no torch.

The YAML goes to standard output or to a file; what is left to do goes to standard error.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from ...instrument.messages import say
from ...instrument.read.files import write_text
from ..checks.read_config import problems_of
from ..errors import UserError, problem, tell
from ..importer.recognize import read_foreign
from ..importer.write import as_yaml, nested


def import_config(path: Path, output: Path | None, force: bool) -> int:
    """Writes the configuration and returns the exit code.

    Args:
        path: YAML, JSON, a Python script or a notebook.
        output: where to write it; None: standard output.
        force: write over a file that is there.

    Raises:
        UserError: the file is not understood or asks for what lora-train does not do, or the output is there.
    """
    draft = read_foreign(path)
    if draft.refused:
        raise UserError(problem("import.refused", file=path, tool=draft.tool, reasons="; ".join(draft.refused)))
    text = as_yaml(draft, path.name)
    if output is None:
        sys.stdout.write(text)
    else:
        _write(text, output, force)
    matter = [left.key for left in draft.left if left.matters]
    if matter:
        tell(say("import.told_matters", count=len(matter), keys=", ".join(matter)))
    for found in problems_of(nested(draft), str(output or path.name)):
        tell(found)
    if output is not None:
        tell(say("import.written", output=shlex.quote(str(output))))
    return 0


def _write(text: str, output: Path, force: bool) -> None:
    if output.is_dir() or (output.exists() and not force):
        raise UserError(problem("import.exists", output=output))
    try:
        write_text(output, text)
    except OSError as error:
        raise UserError(problem("import.not_written", output=output, reason=error.strerror or error)) from error
