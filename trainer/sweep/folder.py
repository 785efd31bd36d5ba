"""A study on disk: which trials are free, whose they are, how they ended. The only state of a sweep.

claims/003          made by whoever takes trial 3 first: making a folder succeeds once, on shared disks too
claims/003.2        the second attempt, once the first was given back or lost
claims/003.2/beat   a number that its worker raises while it works
claims/003.2/outcome.json   how it ended; a trial is over when its highest attempt has one
claims/003.2/released       given back
trials/003.2        the run folder of this attempt, which begins as a copy of the furthest earlier one
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ...instrument.read.damaged import parse_yaml
from ...instrument.read.files import write_text, written_whole
from ..config.names import checkpoint_step
from ..errors import UserError, problem

STUDY, CLAIMS, TRIALS = "study.yaml", "claims", "trials"
BEAT, OUTCOME, RELEASED, SETTINGS = "beat", "outcome.json", "released", "settings.json"
CONFIG, OUTPUT = "trial.yaml", "output.txt"
NAME = re.compile(r"(\d{3,})(?:\.(\d+))?")
TRIES = 3
NOT_COPIED = shutil.ignore_patterns(".lock", "*.tmp", "report.html")


@dataclass(frozen=True)
class Attempt:
    """One try at a trial.

    Attributes:
        root: the study's folder.
        trial: its number, from 0.
        number: of the attempt, from 1.
    """

    root: Path
    trial: int
    number: int = 1

    @property
    def name(self) -> str:
        return f"{self.trial:03}" + (f".{self.number}" if self.number > 1 else "")

    @property
    def claim(self) -> Path:
        return self.root / CLAIMS / self.name

    @property
    def run(self) -> Path:
        return self.root / TRIALS / self.name

    def take(self) -> bool:
        """Claims it; whether nobody else had."""
        self.claim.parent.mkdir(exist_ok=True)
        try:
            self.claim.mkdir()
        except FileExistsError:
            return False
        return True

    def beat(self, count: int) -> None:
        """Says that its worker is at work. Not synced: a disk that is busy would hold up who says it."""
        with written_whole(self.claim / BEAT, synced=False) as file:
            file.write(str(count))

    def pulse(self) -> str:
        """What its worker last said; empty where it has said nothing yet."""
        try:
            return (self.claim / BEAT).read_text(encoding="utf-8")
        except OSError:
            return ""

    def end(self, outcome: dict[str, Any]) -> None:
        """Says how it ended."""
        write_text(self.claim / OUTCOME, json.dumps(outcome, ensure_ascii=False, indent=1) + "\n")

    def outcome(self) -> dict[str, Any] | None:
        """How it ended; None while it has not."""
        return _json(self.claim / OUTCOME)

    def settings(self) -> dict[str, Any] | None:
        """What it varies, where that was drawn after the study had begun."""
        return _json(self.claim / SETTINGS)

    def release(self) -> None:
        """Gives it back."""
        (self.claim / RELEASED).touch()

    @property
    def released(self) -> bool:
        return (self.claim / RELEASED).exists()

    @property
    def following(self) -> Attempt:
        return Attempt(self.root, self.trial, self.number + 1)

    def earlier(self) -> Iterator[Attempt]:
        """The attempts before it, the latest first."""
        for number in range(self.number - 1, 0, -1):
            yield Attempt(self.root, self.trial, number)


def _json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def attempts(root: Path) -> dict[int, Attempt]:
    """The highest attempt at each trial that anybody has taken."""
    found: dict[int, Attempt] = {}
    folder = root / CLAIMS
    for path in folder.iterdir() if folder.is_dir() else ():
        if (match := NAME.fullmatch(path.name)) and path.is_dir():
            one = Attempt(root, int(match[1]), int(match[2] or 1))
            if one.trial not in found or found[one.trial].number < one.number:
                found[one.trial] = one
    return found


def inherit(attempt: Attempt, whole: Attempt | None = None) -> None:
    """Makes its run folder a copy of the earlier attempt's that has the newest whole checkpoint, if one has any.

    Args:
        whole: the attempt to copy in any case.
    """
    best = max(((newest(one.run), one.number) for one in attempt.earlier()), default=(-1, 0))
    if best[0] < 0 and whole is None:
        return
    source = (whole or Attempt(attempt.root, attempt.trial, best[1])).run
    if not source.is_dir():
        return
    attempt.run.parent.mkdir(exist_ok=True)
    partial = attempt.run.with_name(f"{attempt.name}.tmp")
    for _ in range(TRIES):  # whoever was thought lost may be pruning its checkpoints meanwhile
        shutil.rmtree(partial, ignore_errors=True)
        try:
            shutil.copytree(source, partial, ignore=NOT_COPIED)
        except (shutil.Error, FileNotFoundError):
            continue
        partial.rename(attempt.run)
        return


def newest(run: Path) -> int:
    """Step of the newest whole checkpoint of a run; -1 where there is none."""
    from ..saved.whole import what_is_torn  # imports torch, which takes seconds

    steps = [(step, path) for path in run.glob("checkpoint-*") if (step := checkpoint_step(path.name)) is not None]
    return next((step for step, path in sorted(steps, reverse=True) if not what_is_torn(path)), -1)


def read_study_yaml(root: Path) -> dict[str, Any]:
    """What a study's folder says it is.

    Raises:
        UserError: it is none, or was written by hand.
    """
    path = root / STUDY
    try:
        found = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(problem("sweep.no_study", folder=root, what=str(error).split("\n")[0])) from error
    if not isinstance(found, dict) or not isinstance(found.get("plan"), list):
        raise UserError(problem("sweep.no_study", folder=root, what=STUDY))
    return found
