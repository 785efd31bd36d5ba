"""`lora-train sweep STUDY.yaml`: many runs as one study, told by a table and by advise at the end. Imports no torch.

Help comes before pydantic and pandas are imported: functions import what they need.
"""

from __future__ import annotations

import os
import signal
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len

from ...instrument.messages import language, say
from ..errors import UserError, problem
from ..signals import ended_by

if TYPE_CHECKING:
    from .folder import Attempt
    from .study_file import StudyFile

LEAST = 9
"""Columns of a value."""


def add_arguments(parser: ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("study", metavar="STUDY.yaml|FOLDER", type=Path, help=say("cli.sweep.study"))
    parser.add_argument("--worker", action="store_true", help=say("cli.sweep.worker"))
    parser.add_argument("--find", choices=("max_steps",), help=say("cli.sweep.find"))
    parser.add_argument("--yes", action="store_true", help=say("cli.sweep.yes"))


def run(arguments: Namespace) -> int:
    """Works on the study until every trial has ended; the exit code.

    Raises:
        UserError: the study file has mistakes, the folder holds another study, or nobody agreed to what it costs.
    """
    from . import cost
    from .measure import alone_on
    from .rounds import Planner
    from .worker import Interrupted, Worker

    study, first = opened(arguments)
    planner = Planner(study, first)
    table = Table(list(study.space), study.metric)

    def told(attempt: Attempt, outcome: dict[str, Any]) -> None:
        print(table.row(attempt, outcome), flush=True)

    def waits(running: list[Attempt]) -> None:
        names = ", ".join(one.name for one in running)
        print(say("sweep.waits_lost", names=names, seconds=study.lost_after_seconds), file=sys.stderr, flush=True)

    try:
        device = None if os.environ.get("CUDA_VISIBLE_DEVICES") == "" else (cost.ask(study)[0] or {}).get("device")
        with alone_on(device, lambda name: print(say("sweep.waits_device", device=name), file=sys.stderr, flush=True)):
            print(table.head(), flush=True)
            Worker(study, planner, told, waits).work()
    except (Interrupted, KeyboardInterrupt) as error:
        print(say("sweep.interrupted", study=arguments.study), file=sys.stderr)
        return ended_by(error.args[0] if error.args else signal.SIGINT)
    if not arguments.worker:
        advise_on(study)
    return 0


def opened(arguments: Namespace) -> tuple[StudyFile, list[dict[str, Any]]]:
    """The study, and the settings of its first round; written down where it is new.

    Raises:
        UserError: as `run` does.
    """
    from . import cost
    from .folder import STUDY
    from .plan import of_folder, write_study
    from .study_file import read_study_file

    path: Path = arguments.study
    if path.is_dir():
        study, values = of_folder(path)
        if keys := own_code(study):
            raise UserError(problem("sweep.remote_code", folder=path, keys=keys))
        return study, values["plan"]
    asked = read_study_file(path, arguments.find)
    if not (asked.folder / STUDY).exists():
        cost.agree(asked, arguments.yes)
    write_study(asked)
    study, values = of_folder(asked.folder)
    return study, values["plan"]


def own_code(study: StudyFile) -> str:
    """Settings that let code run that is not ours: who names a folder need not have written them."""
    model, training = (study.base.get(name) or {} for name in ("model", "training"))
    keys = {
        "model.trust_remote_code": model.get("trust_remote_code"),
        "training.compute_metrics": training.get("compute_metrics"),
    }
    keys |= {key: study.fixed.get(key) or study.space.get(key) or keys[key] for key in keys}
    return ", ".join(key for key, value in keys.items() if value)


def advise_on(study: StudyFile) -> None:
    """What the runs say of the next one; of a study that looks for the number of steps, that."""
    from ...instrument.advise import advise, lines, read_study
    from ...instrument.read.history import SourceError

    try:
        read = read_study([study.folder])
    except SourceError as error:
        print(problem(error.key, **error.values))
        return
    found = advise(read)
    if study.find is not None:
        found = [one for one in found if one.rule == "P1"]
    print("\n" + "\n".join(lines(read, found, language())))


class Table:
    """Prints itself row by row.

    Attributes:
        keys: what trials vary.
        metric: what they are judged by.
    """

    def __init__(self, keys: list[str], metric: str):
        self.keys = keys
        self.heads = [say("sweep.table.trial"), *(key.rpartition(".")[2] for key in keys), metric,
                      say("sweep.table.step"), say("sweep.table.time"), say("sweep.table.end")]  # fmt: skip
        self.widths = [max(LEAST, cell_len(head)) for head in self.heads]
        self.widths[0] = max(7, cell_len(self.heads[0]))

    def head(self) -> str:
        """The first line."""
        return self._line(self.heads)

    def row(self, attempt: Attempt, outcome: dict[str, Any]) -> str:
        """A trial."""
        ended = str(outcome.get("ended"))
        from ...instrument.advise.page.claims import ENDED
        from ...instrument.show.page.people import number, setting
        from ..console import duration

        end = say(ENDED.get(ended, ENDED["crash"]))
        if why := (outcome.get("why") or {}).get(language()):
            end += f": {why}"
        settings = outcome.get("settings") or {}
        values = [setting(settings.get(key)) for key in self.keys]
        step = outcome.get("step")
        cells = [attempt.name, *values, number(outcome.get("value")), "–" if step is None else f"{step:,}"]
        return self._line([*cells, duration(outcome.get("seconds") or 0), end])

    def _line(self, cells: list[str]) -> str:
        return "  ".join(cell + " " * (w - cell_len(cell)) for cell, w in zip(cells, self.widths, strict=True)).rstrip()
