"""Several runs as one study: what varies, how far seeds scatter, which combinations noise cannot tell apart.

    point        runs whose settings differ in nothing but the seed and where files go
    sigma        deviation of runs of one point, pooled over the points that were run more than once
                 sigma^2 = sum_p sum_i (x_pi - mean_p)^2 / sum_p (n_p - 1); of fewer than TRUSTED degrees of freedom
                 it is drawn towards the assumed one; without repeats it is assumed: SEED of the level
    apart(a, b)  mean_b - mean_a > max(WORTH, CHANCE sqrt(1/n_a + 1/n_b)) sigma
    best set     the points that are not apart from the best one

A difference of one sigma is what two seeds differ by, so nothing below WORTH sigma is acted upon however often it was
repeated; CHANCE allows for the best of a handful being the best by luck.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from ..show.compare.comparable import Comparability
from ..show.compare.differences import HARMLESS, HARMLESS_SECTIONS
from ..show.compare.ranking import SEED
from ..show.page.people import number
from .trial import Trial

WORTH, CHANCE = 1.75, 2.5
TRUSTED = 8
SEEDS = ("training.seed", "training.data_seed")
LENGTHS = ("training.max_steps", "training.num_train_epochs", "training.training_steps")
BATCHES = (
    "training.per_device_train_batch_size", "training.gradient_accumulation_steps", "training.total_train_batch_size",
    "training.num_devices",
)  # fmt: skip
NO_CHOICE = (
    *HARMLESS, *SEEDS, "training.keep_best", "training.load_best_model_at_end", "training.early_stopping_patience",
    "training.total_eval_batch_size", "training.resume_from_checkpoint",
)  # fmt: skip
"""Settings that choose no weights: where files go, when something is measured, and the seed."""


@dataclass
class Point:
    """Runs of one combination of settings.

    Attributes:
        settings: of the varied keys.
        trials: alive ones with evaluations.
    """

    settings: dict[str, Any]
    trials: list[Trial] = field(default_factory=list)

    @cached_property
    def mean(self) -> float:
        return float(np.mean([trial.level for trial in self.trials]))


@dataclass
class Study:
    """What the rules read.

    Attributes:
        trials: all runs.
        metric, lower: what they are judged by.
        known: whether their evaluations may be held against each other.
        facts: of study.yaml or study.json, where the folder has one: sampler, roles, early_stop.
        names: of the folders or files that were given.
        unrecorded: names of trials of a sweep that ended before their first step.
    """

    trials: list[Trial]
    metric: str
    lower: bool
    known: Comparability
    facts: dict[str, Any] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    unrecorded: tuple[str, ...] = ()

    @cached_property
    def alive(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.death is None]

    @cached_property
    def unfinished(self) -> list[Trial]:
        """Alive, and short of their steps: interrupted, or still running. What a sweep ended as hopeless is not."""
        return [] if self.facts.get("early_stop") else [trial for trial in self.alive if trial.is_unfinished]

    @cached_property
    def judged(self) -> list[Trial]:
        """Alive, with evaluations; those short of their steps only where no other is there."""
        evaluated = [trial for trial in self.alive if len(trial.evaluations[0])]
        return [trial for trial in evaluated if trial not in self.unfinished] or evaluated

    @cached_property
    def rounds(self) -> list[Study]:
        """The runs of each round that was planned, the first round first; the study itself where they are of one.

        A later round has more steps and a schedule for them: its runs are held against each other alone.
        """
        later = self.facts.get("rounds")
        planned = [one.get("steps") for one in later if isinstance(one, dict)] if isinstance(later, list) else []
        own = {trial.horizon for trial in self.trials}
        if len(own) < 2 or not planned or not own <= {self.facts.get("steps"), *planned}:
            return [self]
        return [replace(self, trials=[trial for trial in self.trials if trial.horizon == n]) for n in sorted(own)]

    @property
    def searching(self) -> Study:
        """The round in which values were searched."""
        return self.rounds[0]

    @property
    def deciding(self) -> Study:
        """The longest round in which runs can be held against each other."""
        return next((one for one in reversed(self.rounds) if len(one.judged) > 1), self.searching)

    @cached_property
    def varied(self) -> list[str]:
        """Keys with more than one value, where every run says what it has."""
        keys = dict.fromkeys(key for trial in self.trials for key in trial.settings)
        found = []
        for key in keys:
            if key in NO_CHOICE or key.startswith(HARMLESS_SECTIONS):
                continue
            if not all(key in trial.settings for trial in self.trials):
                continue
            if len({_hashable(trial.settings[key]) for trial in self.trials}) > 1:
                found.append(key)
        return found

    @property
    def searched(self) -> list[str]:
        """Varied keys that are neither a length nor a size of the batch: those have rules of their own."""
        return [key for key in self.varied if key not in (*LENGTHS, *BATCHES)]

    @cached_property
    def points(self) -> list[Point]:
        """Alive combinations, best first."""
        return self.points_of(self.judged)

    def points_of(self, trials: Sequence[Trial]) -> list[Point]:
        """Combinations of these runs, best first; a run of an unknown seed, or of one twice, repeats nothing."""
        found: dict[tuple, Point] = {}
        for trial in trials:
            values = {key: trial.settings[key] for key in self.varied}
            key = tuple(map(_hashable, values.values()))
            point = found.setdefault(key, Point(values))
            if not point.trials or _seed(trial) not in (None, *map(_seed, point.trials)):
                point.trials.append(trial)
            else:
                found[(*key, trial.letter)] = Point(values, [trial])
        return sorted(found.values(), key=lambda point: point.mean)

    @property
    def rankable(self) -> bool:
        """Whether levels of different trials may be held against each other at all."""
        return len(self.judged) > 1 and self.known.verdict != "other"

    @property
    def best(self) -> Point | None:
        if not self.points or (len(self.trials) > 1 and not self.rankable and len(self.judged) > 1):
            return None
        return self.points[0]

    @cached_property
    def _repeats(self) -> tuple[int, float]:
        """Degrees of freedom and sum of squares of runs about the mean of their point."""
        squares, freedom = 0.0, 0
        for point in self.points:
            levels = np.array([trial.level for trial in point.trials])
            squares += float(np.sum((levels - levels.mean()) ** 2))
            freedom += len(levels) - 1
        return freedom, squares

    @property
    def repeats(self) -> int:
        """Runs beyond the first of their point."""
        return self._repeats[0]

    @property
    def seeds_known(self) -> bool:
        return self.repeats > 0

    @cached_property
    def sigma(self) -> float:
        """Standard deviation of a run about the mean of its point: seed and evaluation together."""
        if not self.points:
            return math.nan
        freedom, squares = self._repeats
        level = abs(float(np.median([point.mean for point in self.points])))
        assumed = SEED / math.sqrt(2) * (level if self.lower else 1.0)
        assumed = math.hypot(assumed, max(trial.smoothed[2] for trial in self.judged))
        if freedom >= TRUSTED:
            return math.sqrt(squares / freedom)
        prior = TRUSTED // 2
        return math.sqrt((squares + prior * assumed**2) / (freedom + prior))

    def apart(self, better: Point, worse: Point) -> bool:
        """Whether two points differ by more than seeds do."""
        chance = CHANCE * math.sqrt(1 / len(better.trials) + 1 / len(worse.trials))
        return worse.mean - better.mean > max(WORTH, chance) * self.sigma

    @cached_property
    def best_set(self) -> list[Point]:
        """The points that noise cannot tell from the best one."""
        best = self.best
        return [] if best is None else [point for point in self.points if not self.apart(best, point)]

    def letters(self, trials: Sequence[Trial], most: int = 8) -> str:
        own = [trial.letter for trial in trials]
        return ", ".join(own[:most]) + (f" (+{len(own) - most})" if len(own) > most else "")

    def shown(self, level: float) -> str:
        """A level as the metric has it."""
        return number(level if self.lower else -level)

    @property
    def equal_lengths(self) -> bool:
        return len({trial.horizon for trial in self.trials}) == 1


def _seed(trial: Trial) -> tuple | None:
    """What tells repeats apart; None where a log does not say."""
    seed = trial.settings.get("training.seed")
    return None if seed is None else (seed, trial.settings.get("training.data_seed", seed))


def _hashable(value: Any) -> Any:
    return (
        tuple(map(_hashable, value))
        if isinstance(value, (list, tuple))
        else str(value)
        if isinstance(value, dict)
        else value
    )
