"""STUDY.yaml, or every mistake in it.

    base: koalpaca.yaml                    # a configuration, by its path from the study file, or its sections
    scientific: {lora.r: [8, 32]}          # what is asked: any key of the configuration, a list of choices
    nuisance:                              # what has to be tuned for the answer to be fair
      training.learning_rate: {low: 1.0e-5, high: 1.0e-3, scale: log, points: 4}
    fixed: {training.weight_decay: 0}      # what is the same in all trials
    sampler: grid                          # or sobol, tpe
    steps: 200                             # of a trial

Every trial's configuration is checked as `lora-train --config` would, before anything is written.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...instrument.messages import say
from ..checks.read_config import check, read_mapping, read_sections
from ..config.names import at_home, is_installed
from ..errors import Problem, UserError, problem
from .reading import Reader, mapping_of, missing, short, values_of
from .space import Choices, Range, Space, grid

RATE, LOSS = "training.learning_rate", "loss"
"""The key of the learning rate; the metric of a study that looks at the training loss."""
ROLES = ("scientific", "nuisance")
SAMPLERS = ("grid", "sobol", "tpe")
MOST_TRIALS = 10_000
POINTS, LIMITS = 5, (1e-5, 1e-3)
"""The grid of rates where a study does not give one: the range that LoRA with Adam usually bears."""
CHECKED = 200
"""Trials whose configurations are checked; of a larger grid the first, the last and some between."""
SEARCHED_ELSEWHERE = {
    "training.max_steps": "steps",
    "training.num_train_epochs": "steps",
    "training.seed": "seeds",
    "training.data_seed": "seeds",
    "training.output_dir": "folder",
    "training.resume_from_checkpoint": "folder",
    "training.max_hours": "steps",
    "training.metric_for_best_model": "metric",
}
"""Keys that a study sets itself, and its word for each."""


@dataclass(frozen=True)
class Round:
    """A later round.

    Attributes:
        best: how many combinations of the round before go on.
        steps: of a trial.
    """

    best: int
    steps: int


@dataclass(frozen=True)
class StudyFile:
    """A study as it was asked for.

    Attributes:
        name: of the file.
        folder: where it is to lie.
        base: sections of the configuration.
        space: what is searched, in the order of the file.
        roles: "scientific", "nuisance", "fixed" -> keys.
        fixed: key -> value.
        sampler, seed: how trials are drawn.
        trials: combinations of the first round.
        steps, seeds: of each.
        metric: of the evaluations.
        early_stop: "median" or None.
        rounds: after the first.
        threads: of a trial; None: as many as the machine has.
        lost_after_seconds: without a beat.
        find: "max_steps" where that is what is looked for.
    """

    name: str
    folder: Path
    base: dict[str, Any]
    space: Space
    roles: dict[str, list[str]]
    fixed: dict[str, Any] = field(default_factory=dict)
    sampler: str = "sobol"
    seed: int = 0
    trials: int = 0
    steps: int = 0
    seeds: int = 1
    metric: str = "eval_loss"
    early_stop: str | None = None
    rounds: tuple[Round, ...] = ()
    threads: int | None = None
    lost_after_seconds: float = 60.0
    find: str | None = None


KEYS = (
    "base", "folder", *ROLES, "fixed", "sampler", "seed", "trials", "steps", "seeds", "metric", "early_stop", "rounds",
    "threads", "lost_after_seconds",
)  # fmt: skip


def read_study_file(path: Path, find: str | None = None) -> StudyFile:
    """The study that a file describes.

    Args:
        find: what is looked for; then nothing else need be searched.

    Raises:
        UserError: carries every mistake found.
    """
    raw = read_mapping(path)
    reader = Reader(raw, path)
    for key in raw:
        if key not in KEYS:
            close = difflib.get_close_matches(key, KEYS, n=1)
            reader.wrong("sweep.unknown_key", key, guess=close[0] if close else "-", known=", ".join(KEYS))
    base = _base(reader)
    space, roles = _searched(reader, needed=find is None)
    fixed = _fixed(reader, roles)
    sampler = reader.word("sampler", SAMPLERS, "sobol")
    study = StudyFile(
        name=path.stem,
        folder=_folder(reader),
        base=base or {},
        space=space,
        roles=roles,
        fixed=fixed,
        sampler=sampler,
        seed=reader.whole("seed", 0, least=0),
        trials=_trials(reader, sampler, space),
        steps=reader.whole("steps", 0) or missing(reader, "steps"),
        seeds=reader.whole("seeds", 1),
        metric=_metric(reader),
        early_stop=reader.word("early_stop", ("median",), None),
        rounds=tuple(_rounds(reader)),
        threads=reader.whole("threads", None),
        lost_after_seconds=float(reader.whole("lost_after_seconds", 60)),
    )
    if study.sampler == "tpe" and study.seeds > 1:
        reader.wrong("sweep.tpe_seeds", "seeds", value=study.seeds)
    if find is not None:
        study = constant_rates(study, find)
    if base is not None:
        reader.problems += configuration_problems(study, path, {p.error for p in reader.problems})
    if reader.problems:
        raise UserError(*reader.problems)
    return study


def constant_rates(study: StudyFile, find: str) -> StudyFile:
    """The study that finds how many steps are needed: constant rates on a grid, without regularisation.

    Source: the tuning playbook, "Determining the number of steps for each training run", its algorithm for the first
    guess of max_train_steps. A range of the study's own for the rate is kept; nothing else is varied.
    """
    own = study.space.get(RATE)
    rates = (
        replace(own, points=own.points or POINTS) if isinstance(own, Range) else own or Range(*LIMITS, "log", POINTS)
    )
    fixed = {
        **{key: value for key, value in study.fixed.items() if key != RATE},
        "training.lr_scheduler_type": "constant", "training.lr_scheduler_kwargs": {}, "training.weight_decay": 0.0,
        "lora.lora_dropout": 0.0, "training.load_best_model_at_end": False, "training.early_stopping_patience": None,
    }  # fmt: skip
    roles = {"scientific": [], "nuisance": [RATE], "fixed": list(fixed)}
    found = {"folder": study.folder.with_name(f"{study.folder.name}-max-steps"), "metric": LOSS, "sampler": "grid"}
    cells = len(rates.grid())
    return replace(
        study, **found, space={RATE: rates}, roles=roles, fixed=fixed, find=find, seeds=1, rounds=(), trials=cells,
        early_stop=None,
    )  # fmt: skip


def _folder(reader: Reader) -> Path:
    value = reader.raw.get("folder")
    if value is None:
        return Path("runs") / reader.file.stem
    if not isinstance(value, str) or not value.strip():
        reader.wrong("sweep.not_text", "folder", value=short(value))
        return Path("runs") / reader.file.stem
    return at_home(value)


def _base(reader: Reader) -> dict[str, Any] | None:
    """The sections of the base configuration; None where they cannot be had."""
    value = reader.raw.get("base")
    if isinstance(value, dict):
        return {str(key): own for key, own in value.items()}
    if not isinstance(value, str) or not value.strip():
        reader.wrong("sweep.missing" if value is None else "sweep.base_kind", "base", value=short(value))
        return None
    try:
        return read_sections(reader.file.parent / at_home(value))
    except UserError as error:
        reader.problems += error.problems
        return None


def _metric(reader: Reader) -> str:
    value = reader.raw.get("metric")
    if value is None:
        return "eval_loss"
    if not isinstance(value, str) or not value.strip():
        reader.wrong("sweep.not_text", "metric", value=short(value))
        return "eval_loss"
    return "eval_" + value.strip().removeprefix("eval_")


def _trials(reader: Reader, sampler: str, space: Space) -> int:
    n = reader.whole("trials", None)
    if not space:
        return 1
    if sampler != "grid":
        return missing(reader, "trials") if n is None else n
    cells = 1
    for one in space.values():
        cells *= max(1, len(one.grid()))
    if n is not None and n != cells:
        reader.wrong("sweep.grid_size", "trials", value=n, cells=cells)
    if cells > MOST_TRIALS:
        reader.wrong("sweep.too_many", "trials", value=cells, most=MOST_TRIALS)
        return 1
    return cells


def _searched(reader: Reader, needed: bool) -> tuple[dict[str, Range | Choices], dict[str, list[str]]]:
    space: dict[str, Range | Choices] = {}
    roles: dict[str, list[str]] = {}
    for role in ROLES:
        values = mapping_of(reader, role)
        roles[role] = list(values)
        for key, value in values.items():
            where = f"{role}.{key}"
            if own := SEARCHED_ELSEWHERE.get(key):
                reader.wrong("sweep.set_elsewhere", where, own=own)
            elif key in space:
                reader.wrong("sweep.twice", where, other=next(r for r in ROLES if key in roles[r]))
            elif one := values_of(reader, where, value):
                space[key] = one
    if needed and not any(reader.raw.get(role) for role in ROLES):
        reader.wrong("sweep.nothing_searched", "scientific")
    return space, roles


def _fixed(reader: Reader, roles: dict[str, list[str]]) -> dict[str, Any]:
    fixed = mapping_of(reader, "fixed")
    roles["fixed"] = list(fixed)
    for key in list(fixed):
        if own := SEARCHED_ELSEWHERE.get(key):
            reader.wrong("sweep.set_elsewhere", f"fixed.{key}", own=own)
            del fixed[key]
        elif other := next((role for role in ROLES if key in roles[role]), None):
            reader.wrong("sweep.twice", f"fixed.{key}", other=other)
            del fixed[key]
    return fixed


def _rounds(reader: Reader) -> Iterator[Round]:
    value = reader.raw.get("rounds")
    if value is None:
        return
    if not isinstance(value, list):
        reader.wrong("sweep.rounds", "rounds", value=short(value))
        return
    before = reader.raw.get("steps")
    for i, one in enumerate(value):
        known = isinstance(one, dict) and set(one) <= {"best", "steps"}
        numbers = [one.get(key) for key in ("best", "steps")] if known else [None]
        if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in numbers):
            reader.wrong("sweep.rounds", f"rounds[{i}]", value=short(one))
            continue
        if isinstance(before, int) and one["steps"] <= before:
            reader.wrong("sweep.round_no_longer", f"rounds[{i}].steps", value=one["steps"], before=before)
        before = one["steps"]
        yield Round(one["best"], one["steps"])


def configuration_problems(study: StudyFile, file: Path, known: set[str]) -> list[Problem]:
    """What is wrong with the configurations of the trials; each mistake once.

    Args:
        known: errors that were found before.
    """
    from .plan import configuration  # plan.py knows studies on disk, which begin here

    if study.sampler == "tpe" and not is_installed("optuna"):
        return [problem("sweep.no_optuna", file=file)]
    found: dict[str, Problem] = {}
    for settings in _samples(study.space):
        own = {key: f"{file}: {role}" for role, keys in study.roles.items() for key in keys}
        try:
            config = check(configuration(study, settings, study.steps), _place(own, file))
        except UserError as error:
            found |= {one.error: one for one in error.problems}
            continue
        if study.metric != LOSS and config.training.eval_strategy == "no":
            one = problem("sweep.no_evaluation", file=file, metric=study.metric)
            found[one.error] = one
    return [one for error, one in found.items() if error not in known]


def _place(own: Mapping[str, str], file: Path) -> Callable[[str], str]:
    return lambda key: own.get(key, say("sweep.base_of", file=file))


def _samples(space: Space) -> list[dict[str, Any]]:
    """Combinations that between them hold every choice and both ends of every range."""
    sides = {key: one.values if isinstance(one, Choices) else (one.at(0.0), one.at(1.0)) for key, one in space.items()}
    n = max(map(len, sides.values()), default=1)
    diagonal = [{key: own[i % len(own)] for key, own in sides.items()} for i in range(n)]
    whole = {key: Choices(tuple(own)) for key, own in sides.items()}
    size = 1
    for own in sides.values():
        size *= len(own)
    return grid(whole) if size <= CHECKED else diagonal
