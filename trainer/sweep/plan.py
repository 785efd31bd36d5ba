"""The settings of every trial: the first round as it was drawn when the study was written, later ones by what came out.

    configuration of a trial = base, then fixed, then its own settings, then what a study sets of every run

Trials are numbered through: combinations of a round with the first seed, then with the second, and so on.
"""

from __future__ import annotations

import os
import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml

from ...instrument.read.files import write_text
from ..errors import UserError, problem
from . import folder
from .folder import STUDY
from .space import Choices, Range, grid, sobol
from .study_file import LOSS, Round, StudyFile

SEED_KEY, SEED = "training.seed", 42
"""training.seed where the base configuration names none; its own default."""
EVALUATIONS, CHECKPOINTS = 10, 4
"""Of a trial, where the base configuration does not say how many."""


def drawn(study: StudyFile) -> list[dict[str, Any]]:
    """Settings of the first round's trials; none where each is drawn by what came out before."""
    if study.sampler == "tpe":
        return []
    points = grid(study.space) if study.sampler == "grid" else sobol(study.space, study.trials, study.seed)
    return [point | seed for seed in seeds(study) for point in points]


def seeds(study: StudyFile) -> list[dict[str, Any]]:
    """The seeds of a combination, as settings; an empty one where there is one seed."""
    if study.seeds == 1:
        return [{}]
    first = _section(study.base, "training").get("seed", SEED)
    return [{SEED_KEY: int(first) + i} for i in range(study.seeds)]


def _section(sections: dict[str, Any], name: str) -> dict[str, Any]:
    found = sections.get(name)
    return found if isinstance(found, dict) else {}


def configuration(study: StudyFile, settings: dict[str, Any], steps: int) -> dict[str, Any]:
    """The sections of one trial's configuration, without where it goes."""
    sections = {name: dict(own) if isinstance(own, dict) else own for name, own in study.base.items()}
    training = _section(sections, "training")
    defaults: dict[str, Any] = {}
    if "eval_strategy" not in training and "evaluation_strategy" not in training and study.metric != LOSS:
        defaults |= {"eval_strategy": "steps"}
    if "eval_steps" not in training:
        defaults |= {"eval_steps": max(1, steps // EVALUATIONS)}
    if "save_strategy" not in training and "save_steps" not in training:
        defaults |= {"save_steps": max(1, steps // CHECKPOINTS), "save_total_limit": 1}
    own = {f"training.{key}": value for key, value in defaults.items()}
    own |= study.fixed | settings
    own |= {"training.max_steps": steps, "training.resume_from_checkpoint": None, "training.push_to_hub": False}
    for key, value in own.items():
        section, _, name = key.partition(".")
        if not isinstance(sections.get(section), dict):
            sections[section] = {}
        sections[section][name] = value
    return sections


def write_study(study: StudyFile) -> dict[str, Any]:
    """Writes study.yaml, where nobody has written it yet.

    Returns:
        what stands there now: of another worker that was first, its.

    Raises:
        UserError: another study lies there, or it cannot be written.
    """
    values = as_dict(study) | {"plan": drawn(study)}
    path = study.folder / STUDY
    partial = study.folder / f"{STUDY}.{os.getpid()}.tmp"
    try:
        study.folder.mkdir(parents=True, exist_ok=True)
        write_text(partial, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
        try:
            os.link(partial, path)  # unlike a renaming it does not replace what another worker has written
        except FileExistsError:
            pass
        except OSError:  # a disk without links
            if not path.exists():
                partial.replace(path)
        partial.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(problem("run.cannot_write", folder=study.folder, what=error.strerror or error)) from error
    return require_same(study)


def require_same(study: StudyFile) -> dict[str, Any]:
    """What stands in the study's folder.

    Raises:
        UserError: it is another study.
    """
    found = folder.read_study_yaml(study.folder)
    asked = as_dict(replace(study, threads=study.threads or found.get("threads")))
    other = [key for key, value in asked.items() if found.get(key) != value]
    if other:
        raise UserError(problem("sweep.other_study", folder=shlex.quote(str(study.folder)), keys=", ".join(other)))
    return found


def as_dict(study: StudyFile) -> dict[str, Any]:
    """As study.yaml has it; plain values."""
    values = {key: value for key, value in vars(study).items() if key not in ("folder", "space", "rounds", "threads")}
    values["threads"] = study.threads or len(os.sched_getaffinity(0))
    values["space"] = {key: one.as_dict() for key, one in study.space.items()}
    values["rounds"] = [asdict(one) for one in study.rounds]
    return values


def of_folder(root: Path) -> tuple[StudyFile, dict[str, Any]]:
    """The study that lies in a folder, and all that its file says.

    Raises:
        UserError: none does.
    """
    found = folder.read_study_yaml(root)
    try:
        space = {
            key: Choices(tuple(one)) if isinstance(one, list) else Range(**one, whole=isinstance(one["low"], int))
            for key, one in found["space"].items()
        }
        rounds = tuple(Round(**one) for one in found["rounds"])
        own = {name: found[name] for name in StudyFile.__dataclass_fields__ if name in found}
        return StudyFile(**own | {"folder": root, "space": space, "rounds": rounds}), found
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(problem("sweep.no_study", folder=root, what=f"{STUDY}: {error}")) from error
