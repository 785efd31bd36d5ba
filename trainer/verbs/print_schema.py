"""`lora-train schema`: JSON Schema of the configuration, for an editor. Imports no torch.

The first line of a configuration names the file:  # yaml-language-server: $schema=config.schema.json
"""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

from ...instrument.messages import say
from ...instrument.read.files import write_text
from ..config.reference import json_schema, study_schema
from ..errors import UserError, problem


def schema_text(study: bool = False) -> str:
    """JSON Schema (draft 2020-12) of the YAML file; `study`: of a study's."""
    return json.dumps(study_schema() if study else json_schema(), ensure_ascii=False, indent=1) + "\n"


def print_schema(output: Path | None, study: bool = False) -> int:
    """Prints it, or writes it to a file.

    Raises:
        UserError: the file cannot be written.
    """
    if output is None:
        print(schema_text(study), end="")
        return 0
    if output.is_dir():
        raise UserError(problem("report.cannot_write", path=output, what=os.strerror(errno.EISDIR)))
    try:
        write_text(output, schema_text(study))
    except OSError as error:
        raise UserError(problem("report.cannot_write", path=output, what=error.strerror or error)) from error
    print(say("schema.written", path=output))
    return 0
