"""Every trial that is known by now: the first round as drawn, later rounds of the best of the one before, longer.

    rounds              the best combinations by the mean of their seeds, their schedule lengthened as
                        `lora-train lengthen` does
    find: max_steps     as long as the fastest rate that fits the rows is at the edge: one more, three times as far
    sampler: tpe        settings are drawn when a trial is taken

All of it is a function of what lies in the folder, so that workers need not agree on anything else.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..checks.read_config import check
from .folder import Attempt
from .plan import SEED_KEY, configuration, seeds
from .study_file import RATE, StudyFile

EXTENSIONS = 3
"""Rates beyond the grid that are tried at most."""


@dataclass(frozen=True)
class Planned:
    """A trial to come.

    Attributes:
        settings: None where they are drawn when it is taken.
        steps: of the run.
        round: from 0.
    """

    settings: dict[str, Any] | None
    steps: int
    round: int = 0


@dataclass
class Planner:
    """The trials of a study, as far as they are known.

    Attributes:
        study: what is asked.
        first: settings of the first round, as drawn.
    """

    study: StudyFile
    first: list[dict[str, Any]]
    _later: list[Planned] = field(default_factory=list)
    _rounds_done: int = 0

    def known(self, ended: dict[int, dict[str, Any]]) -> list[Planned]:
        """The trials.

        Args:
            ended: outcomes by trial.
        """
        begun = self._begun()
        while len(ended) >= len(begun) and all(i in ended for i in range(len(begun))):
            more = self._next(begun, [ended[i] for i in range(len(begun))])
            if not more:
                break
            self._later += more
            self._rounds_done += 1
            begun = self._begun()
        return begun

    def _begun(self) -> list[Planned]:
        drawn: Sequence[dict[str, Any] | None] = self.first
        if self.study.sampler == "tpe":
            drawn = [None] * self.study.trials
        return [*(Planned(settings, self.study.steps) for settings in drawn), *self._later]

    def _next(self, begun: list[Planned], outcomes: list[dict[str, Any]]) -> list[Planned]:
        if self.study.find is not None:
            return self._further(begun, outcomes)
        if self._rounds_done >= len(self.study.rounds):
            return []
        last = begun[-1].round
        own = [(p, o) for p, o in zip(begun, outcomes, strict=True) if p.round == last]
        coming = self.study.rounds[self._rounds_done]
        found = [
            longer(self.study, settings, own[0][0].steps, coming.steps) for settings in best_of(own)[: coming.best]
        ]
        return [Planned(one | seed, coming.steps, last + 1) for seed in seeds(self.study) for one in found]

    def _further(self, begun: list[Planned], outcomes: list[dict[str, Any]]) -> list[Planned]:
        """One more rate, where the fastest so far is the lowest or the highest of those that ran through."""
        reached = {
            float(p.settings[RATE]): o["step"] for p, o in zip(begun, outcomes, strict=True) if p.settings is not None
        }
        fitted = {rate: step for rate, step in reached.items() if step is not None}
        if not fitted or len(begun) - len(self.first) >= EXTENSIONS:
            return []
        fastest = min(fitted, key=lambda rate: fitted[rate])
        if fastest not in (min(reached), max(reached)):
            return []
        rate = float(f"{fastest * 3 if fastest == max(reached) else fastest / 3:.2g}")
        return [Planned({RATE: rate}, self.study.steps, begun[-1].round + 1)]


def best_of(trials: Sequence[tuple[Planned, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Combinations without their seeds, best first; those that died with any seed are not among them."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for trial, outcome in trials:
        key = json.dumps(without_seed(outcome.get("settings") or trial.settings or {}), sort_keys=True)
        groups.setdefault(key, []).append(outcome)
    alive = {
        key: float(np.mean([one["value"] * (1 if one.get("lower", True) else -1) for one in own]))
        for key, own in groups.items()
        if all(one["ended"] in ("done", "early") and one["value"] is not None for one in own)
    }
    return [json.loads(key) for key in sorted(alive, key=lambda key: alive[key])]


def without_seed(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key != SEED_KEY}


def longer(study: StudyFile, settings: dict[str, Any], before: int, after: int) -> dict[str, Any]:
    """The settings of a longer run: its schedule stretched, or its decay kept."""
    from ..verbs.lengthen import lengthened  # imports torch, which takes seconds

    training = check(configuration(study, settings, before), lambda key: key).training
    changed = {f"training.{key}": value for key, value in lengthened(training, before, after).settings.items()}
    return settings | {key: value for key, value in changed.items() if key != "training.max_steps"}


def settings_of(attempt: Attempt, planned: Sequence[Planned]) -> dict[str, Any]:
    """What a trial varied."""
    own = planned[attempt.trial].settings if attempt.trial < len(planned) else None
    if own is None:
        own = next((found for one in [attempt, *attempt.earlier()] if (found := one.settings()) is not None), {})
    return own
