"""`lora-train advise RUN...`: what runs say about the next one. Imports no torch and trains nothing."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

from ...instrument.messages import LANGUAGES, language, say
from ..errors import UserError, problem


def add_arguments(parser: ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("sources", metavar="RUN", type=Path, nargs="+", help=say("cli.advise.sources"))
    parser.add_argument("--json", action="store_true", help=say("cli.advise.json"))
    parser.add_argument("--lang", choices=LANGUAGES, default=language(), help=say("cli.lang"))


def run(arguments: Namespace) -> int:
    """Prints the advice and returns the exit code.

    Raises:
        UserError: a source is no run and holds none.
    """
    from ...instrument.advise import advise, lines, read_study
    from ...instrument.read.history import SourceError

    try:
        study = read_study(arguments.sources)
    except SourceError as error:
        raise UserError(problem(error.key, **error.values)) from error
    found = advise(study)
    if arguments.json:
        print(json.dumps([advice.as_json(arguments.lang) for advice in found], ensure_ascii=False, indent=1))
    else:
        print("\n".join(lines(study, found, arguments.lang)))
    return 0
