"""What a study costs, said before it starts and asked for.

cost = sum over rounds of trials x (seconds to load + steps x seconds of a step, as a dry run measures them)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from ...instrument.messages import say
from ...instrument.read.files import write_text
from ..console import duration
from ..errors import UserError, problem
from .plan import configuration, drawn, seeds
from .study_file import StudyFile
from .worker import environment


def measured(study: StudyFile) -> tuple[float, float] | None:
    """Seconds to load a trial and of a step, by a dry run of the first one; None where that is not to be had.

    Raises:
        UserError: data or model cannot be used.
    """
    settings = (drawn(study) or [{key: one.at(0.5) for key, one in study.space.items()}])[0]
    sections = configuration(study, settings, study.steps)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trial.yaml"
        write_text(path, yaml.safe_dump(sections, allow_unicode=True))
        answer, ended = ask(study, str(path))
    if answer is None and ended.returncode:
        raise UserError(problem("sweep.not_measured", what=last_line(ended.stderr or ended.stdout)))
    return None if answer is None or "step" not in answer else (float(answer["load"]), float(answer["step"]))


def ask(study: StudyFile, *arguments: str) -> tuple[dict[str, Any] | None, subprocess.CompletedProcess[str]]:
    """What measure.py says in a process of its own, and how that ended."""
    command = [sys.executable, "-m", "lora_train.trainer.sweep.measure", *arguments]
    ended = subprocess.run(command, env=environment(study), stdin=subprocess.DEVNULL, capture_output=True, text=True)
    try:
        return json.loads(last_line(ended.stdout)), ended
    except ValueError:
        return None, ended


def last_line(text: str) -> str:
    """The last line that says something; of errors the first that is one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("error:", "오류:"))]
    return (errors[:1] or lines[-1:] or [""])[0].removeprefix("error: ").removeprefix("오류: ")


def trials_and_steps(study: StudyFile) -> list[tuple[int, int]]:
    """Of each round."""
    n = len(drawn(study)) or study.trials * len(seeds(study))
    return [(n, study.steps), *((one.best * len(seeds(study)), one.steps) for one in study.rounds)]


def told(study: StudyFile, seconds: tuple[float, float] | None) -> list[str]:
    """The study in words, and its cost."""
    rounds = trials_and_steps(study)
    lines = [say("sweep.cost_round", round=i + 1, n=n, steps=steps) for i, (n, steps) in enumerate(rounds)]
    threads = study.threads or len(os.sched_getaffinity(0))
    if seconds is None:
        return [*lines, say("sweep.cost_unknown", threads=threads)]
    load, step = seconds
    each = [load + steps * step for _, steps in rounds]
    total = sum(n * one for (n, _), one in zip(rounds, each, strict=True))
    values = {"time": duration(total), "each": duration(each[0]), "step": step, "load": load, "threads": threads}
    return [*lines, say("sweep.cost", **values)]


def agree(study: StudyFile, yes: bool) -> None:
    """Measures and says what the study costs, and asks.

    Raises:
        UserError: there is nobody to ask, the answer is no, or a trial could not be run.
    """
    print(say("sweep.measuring"), flush=True)
    print("\n".join(told(study, measured(study))), flush=True)
    if yes:
        return
    if not sys.stdin.isatty():
        raise UserError(problem("sweep.not_agreed"))
    try:
        answer = input(say("sweep.agree") + " ").strip().lower()
    except EOFError:
        answer = ""
    if answer not in ("y", "yes", "예", "네", "ㅇ"):
        raise UserError(problem("sweep.refused"))
