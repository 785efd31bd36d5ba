"""`lora-train sweep STUDY.yaml`: many runs as one study, told by a table and by advise at the end. Imports no torch."""

from __future__ import annotations

import signal
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from ...instrument.messages import say
from ..errors import UserError, problem
from ..signals import ended_by


def add_arguments(parser: ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("study", metavar="STUDY.yaml|FOLDER", type=Path, help=say("cli.sweep.study"))
    parser.add_argument("--worker", action="store_true", help=say("cli.sweep.worker"))
    parser.add_argument("--yes", action="store_true", help=say("cli.sweep.yes"))


def run(arguments: Namespace) -> int:
    """Works on the study until every trial has ended; the exit code.

    Raises:
        UserError: the study file has mistakes, the folder holds another study, or nobody agreed to what it costs.
    """
    from ..sweep.folder import STUDY, attempts
    from ..sweep.plan import of_folder, write_study
    from ..sweep.rounds import planned
    from ..sweep.study_file import read_study_file
    from ..sweep.table import Table
    from ..sweep.worker import Interrupted, Worker

    path: Path = arguments.study
    if path.is_dir():
        study, values = of_folder(path)
    else:
        asked = read_study_file(path)
        if not (asked.folder / STUDY).exists():
            agree(arguments, asked)
        write_study(asked, None)
        study, values = of_folder(asked.folder)
    table = Table(list(study.space), study.metric)

    def plan(found: dict) -> list:
        return planned(study, values["plan"], found)

    def told(attempt: Any, outcome: dict[str, Any]) -> None:
        settings, _ = plan(attempts(study.folder))[attempt.trial]
        print(table.row(attempt, settings or {}, outcome), flush=True)

    print(table.head(), flush=True)
    try:
        Worker(study, plan, told).work()
    except (Interrupted, KeyboardInterrupt) as error:
        print(say("sweep.interrupted", study=path), file=sys.stderr)
        return ended_by(getattr(error, "number", signal.SIGINT))
    if not arguments.worker:
        advise_on(study.folder)
    return 0


def agree(arguments: Namespace, study: Any) -> None:
    """Says what the study costs, and asks.

    Raises:
        UserError: there is nobody to ask, or the answer is no.
    """
    if not arguments.yes and not sys.stdin.isatty():
        raise UserError(problem("sweep.not_agreed"))


def advise_on(folder: Path) -> None:
    """What the runs say of the next one."""
    from ...instrument.advise import advise, lines, read_study
    from ...instrument.messages import language
    from ...instrument.read.history import SourceError

    try:
        study = read_study([folder])
    except SourceError as error:
        print(problem(error.key, **error.values))
        return
    print("\n" + "\n".join(lines(study, advise(study), language())))
