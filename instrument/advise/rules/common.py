"""What rules share: commands to paste, and what they cost."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...judge.explain import advised
from ...judge.explain.finding import Phrase, clock
from ...judge.wording import OURS, PYTHON, keys_of
from ...read.lock import is_held
from ...show.page.people import number
from ..advice import Step
from ..study import Point, Study
from ..trial import Trial

AGAIN = 3
"""Points that are repeated where noise cannot tell many apart."""
NAME = 60
"""Characters that are added to the name of a run's folder."""
CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def step_with(trial: Trial, settings: dict[str, Any], steps: float | None = None) -> Step:
    """The run again with other settings, into a folder of its own, and what that costs.

    Args:
        steps: of a run; as many as the trial made.
    """
    return steps_with([(trial, settings)], steps)


def steps_with(runs: Sequence[tuple[Trial, dict[str, Any]]], steps: float | None = None) -> Step:
    """The same of several runs, with what they cost together."""
    trial = runs[0][0]
    steps = trial.horizon if steps is None else steps
    per_step = trial.seconds / max(trial.history.last_step, 1)
    return Step(tuple(_command(*run) for run in runs), cost(steps, len(runs), per_step))


def resumed(study: Study, trial: Trial) -> Step | None:
    """The rest of a run that was interrupted; None for one that still runs, and for a trial of a sweep, which its
    workers take up again.
    """
    folder = trial.folder.rstrip("/")
    if study.facts or is_held(Path(folder)):
        return None
    if trainer := _other_trainer(trial):
        how = keys_of(trainer, "--resume auto")
        return Step((f"trainer.train({how})" if trainer in PYTHON else how,))
    words = ["--config", f"{folder}/config.yaml", "--resume", "auto", f"training.output_dir={folder}"]
    per_step = trial.seconds / max(trial.history.last_step, 1)
    return Step((f"lora-train {shlex.join(words)}",), cost(trial.horizon - _saved(Path(folder)), 1, per_step))


def _saved(folder: Path) -> int:
    """The step of the newest checkpoint; 0 without any, where a run begins anew."""
    found = (CHECKPOINT.fullmatch(path.name) for path in folder.glob("checkpoint-*") if path.is_dir())
    return max((int(match[1]) for match in found if match), default=0)


def _other_trainer(trial: Trial) -> str | None:
    """Whose keys advice on a run names; None for ours, which has a configuration and a command."""
    if trial.history.kind == "run" and not trial.history.attached:
        return None
    trainer = advised(trial.history)
    return trainer if trainer != OURS else "transformers"


def cost(steps: float, runs: int, per_step: float) -> Phrase:
    """Runs of so many steps at so many seconds a step; without the time where that is unknown."""
    values = {"runs": runs, "steps": round(steps), "time": clock(runs * steps * per_step)}
    known = math.isfinite(per_step) and per_step > 0
    if runs == 1:
        return Phrase("advise.cost_run" if known else "advise.cost_run_steps", values)
    return Phrase("advise.cost_runs" if known else "advise.cost_runs_steps", values)


def _command(trial: Trial, settings: dict[str, Any]) -> str:
    words = [f"{key}={_typed(value)}" for key, value in settings.items()]
    if trainer := _other_trainer(trial):
        return keys_of(trainer, " ".join(words))
    folder = trial.folder.rstrip("/")
    words.append(f"training.output_dir={folder}-{_name_of(settings)}")
    return " ".join(["lora-train", "--config", shlex.quote(f"{folder}/config.yaml"), *map(shlex.quote, words)])


def _name_of(settings: dict[str, Any]) -> str:
    """What tells a run from others: the last settings, as many as a folder's name has room for."""
    name = ""
    for key, value in reversed(settings.items()):
        own = f"{key.rpartition('.')[2]}-{_typed(value)}"
        if name and len(own) + 1 + len(name) > NAME:
            break
        name = f"{own}-{name}" if name else own
    return name[:NAME]


def _typed(value: Any) -> str:
    if isinstance(value, float):
        return number(value, 4).replace(",", "")
    return str(value).lower() if isinstance(value, bool) else str(value)


def seeds_again(study: Study, points: Sequence[Point], seeds: int = 1) -> Step | None:
    """The best few of some points again, each with so many seeds that no run has had."""
    known = [trial.number("training.seed") for trial in study.trials]
    last = int(max((value for value in known if value is not None), default=42))
    runs = [
        (point.trials[0], {"training.seed": last + more}) for point in points[:AGAIN] for more in range(1, seeds + 1)
    ]
    return steps_with(runs) if runs else None


def shown(value: Any) -> str:
    """A setting in a sentence."""
    return number(value, 3) if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


def names(trials: list[Trial]) -> tuple[str, ...]:
    return tuple(trial.name for trial in trials)
