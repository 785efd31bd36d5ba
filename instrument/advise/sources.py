"""Reads a study: run folders, folders that hold some, study folders, and states of the stock Trainer.

    runs/a runs/b            runs, each given by name
    runs/sweep               a folder of run folders
    runs/sweep               study.yaml or study.json beside trials/NAME, each a run folder; of the attempts at one
                             trial, 003 and 003.2, the last that has begun
    outputs/lr-1e-4          a folder of the Trainer, or its trainer_state.json: beside.py reads what lies beside it

Nothing is unpickled. A folder that holds no step yet is a trial that says nothing, not an error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ..judge.explain import Finding, explain
from ..judge.metrics import lower_is_better
from ..read.damaged import parse_own_json, parse_yaml
from ..read.files import read_own
from ..read.history import History, SourceError
from ..read.logs import STATE, read_history
from ..read.store import METRICS, SITES
from ..show.compare.comparable import Comparability, comparability
from ..show.compare.differences import differences
from ..show.compare.ranking import metrics_of
from .beside import read_beside
from .study import Study
from .trial import Trial

FACTS = ("study.yaml", "study.yml", "study.json")
TRIALS, CLAIMS, OUTCOME = "trials", "claims", "outcome.json"
ATTEMPT = re.compile(r"(\d{3,})(?:\.(\d+))?")
"""A trial's number, and which attempt at it."""
# A page of a study is a few kilobytes; what is larger is none.
LARGEST = 1 << 20


def read_study(paths: Sequence[str | Path]) -> Study:
    """The study that some paths make.

    Raises:
        SourceError: one of them is no run and holds none.
    """
    facts: dict[str, Any] = {}
    found: list[tuple[str, Path]] = []
    unrecorded: list[str] = []
    for path in map(Path, paths):
        if is_run(path) or not path.is_dir():
            found.append((str(path), path))
            continue
        facts |= _facts(path)
        inner = list(_runs_in(path))
        if not inner:
            raise SourceError("advise.no_runs", path=path)
        found += inner
        unrecorded += _unrecorded(path)
    histories = [(name, path, read_history(path)) for name, path in dict.fromkeys(found)]
    study = study_of(histories, facts, tuple(map(str, paths)))
    return replace(study, unrecorded=tuple(dict.fromkeys(unrecorded)))


def is_run(path: Path) -> bool:
    """Whether a folder is a run of ours or of the stock Trainer."""
    own = any((path / name).is_file() for name in (METRICS, SITES, STATE, "trainer_log.jsonl"))
    return own or any(path.glob(f"checkpoint-*/{STATE}"))


def _runs_in(folder: Path) -> Iterator[tuple[str, Path]]:
    inner = folder / TRIALS if (folder / TRIALS).is_dir() else folder
    found = [path for path in sorted(inner.iterdir()) if path.is_dir() and is_run(path)]
    if inner.name == TRIALS:
        found = last_attempts(found)
    for path in found:
        yield path.name, path


def _unrecorded(folder: Path) -> list[str]:
    """Trials of a sweep whose last attempt is over without a step: refused, out of memory, or a crash at the start."""
    claims = folder / CLAIMS
    attempts = [path for path in sorted(claims.iterdir()) if ATTEMPT.fullmatch(path.name)] if claims.is_dir() else []
    found = []
    for path in last_attempts(attempts):
        try:
            outcome = parse_own_json(read_own(path / OUTCOME))
        except (OSError, ValueError, RecursionError):  # it goes on, or the file is torn
            continue
        went_well = isinstance(outcome, dict) and outcome.get("ended") in ("done", "early")
        if not went_well and not is_run(folder / TRIALS / path.name):
            found.append(path.name)
    return found


def last_attempts(paths: Sequence[Path]) -> list[Path]:
    """Of each trial of a sweep the last attempt, in the order of the trials; other runs after them."""
    last: dict[int, tuple[int, Path]] = {}
    others = []
    for path in paths:
        if (match := ATTEMPT.fullmatch(path.name)) is None:
            others.append(path)
            continue
        trial, number = int(match[1]), int(match[2] or 1)
        if number >= last.get(trial, (0, path))[0]:
            last[trial] = (number, path)
    return [*(path for _, (_, path) in sorted(last.items())), *others]


def _facts(folder: Path) -> dict[str, Any]:
    """What study.yaml or study.json says; nothing where there is none or it is torn."""
    for name in FACTS:
        path = folder / name
        try:
            if not path.is_file() or path.stat().st_size > LARGEST:
                continue
            text = path.read_text(encoding="utf-8")
            facts = parse_own_json(text) if name.endswith("json") else parse_yaml(text)
        except (OSError, ValueError, RecursionError, yaml.YAMLError):
            continue
        if isinstance(facts, dict):
            return {str(key): value for key, value in facts.items()}
    return {}


def study_of(
    histories: Sequence[tuple[str, Path | str, History]],
    facts: dict[str, Any] | None = None,
    names: tuple[str, ...] = (),
    judge: Callable[[History], list[Finding]] = explain,
) -> Study:
    """The study of histories that have been read, each with its name and where it lies."""
    if not histories:
        raise SourceError("advise.nothing")
    trials = [
        Trial(_letter(i), name, history, settings_of(history, path), str(path), judge=judge)
        for i, (name, path, history) in enumerate(histories)
    ]
    evaluated = [trial.history for trial in trials if len(trial.history.evals)]
    metrics = metrics_of(evaluated) if evaluated else []
    asked = str((facts or {}).get("metric"))
    metric = asked if asked in metrics else metrics[0] if metrics else "eval_loss"
    lower = lower_is_better(metric, evaluated[0]) if evaluated else True
    for trial in trials:
        trial.metric, trial.lower = metric, lower
    return Study(trials, metric, lower, _comparable(trials), facts or {}, names)


def _comparable(trials: Sequence[Trial]) -> Comparability:
    judged = [trial for trial in trials if trial.death is None and len(trial.evaluations[0])]
    own = [trial.history for trial in judged]
    if len(own) < 2:
        return Comparability("same", [], [], np.empty(0, "uint64"))
    known = comparability(own, [trial.letter for trial in judged], differences(own))
    if any(finding.key == "compare.some_rows" for finding in known.findings):  # their means are of other rows
        return Comparability("other", known.findings, [], known.common)
    return known


def _letter(index: int) -> str:
    return chr(ord("A") + index) if index < 26 else str(index + 1)


def settings_of(history: History, path: Path | str) -> dict[str, Any]:
    """Settings of a run: its configuration, else what stands beside its state and in its log."""
    own = {f"{section}.{key}": value for section, values in history.config.items() for key, value in values.items()}
    own = {key: value for key, value in own.items() if value is not None}
    if history.kind == "run" and not history.attached:
        return _with_length(own, history)
    settings = read_beside(Path(path)) | own
    if "training.learning_rate" not in settings:
        _, rates = history.finite("learning_rate")
        if len(rates) and rates.max() > 0:  # the highest that was logged; its second digit hides where lines fell
            settings["training.learning_rate"] = float(f"{rates.max():.1e}")
    return _with_length(settings, history)


def _with_length(settings: dict[str, Any], history: History) -> dict[str, Any]:
    """Steps in place of epochs where both say the same."""
    if history.planned and not (_number(settings.get("training.max_steps")) or 0) > 0:
        settings = settings | {"training.max_steps": history.planned}
    return {key: value for key, value in settings.items() if key != "training.num_train_epochs" or not history.planned}


def _number(value: Any) -> float | None:
    kept = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if kept else None
