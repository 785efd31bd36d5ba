"""When a run logs, evaluates and saves."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..config.schema import TrainingSection
from .lr_schedule import steps_of


@dataclass(frozen=True)
class Schedule:
    """Intervals in steps; infinite where something never happens. What happens at all happens at the last step too.

    Attributes:
        n_steps: length of the run.
        log_first: whether the first step is logged.
    """

    n_steps: int
    log_every: float
    eval_every: float
    save_every: float
    log_first: bool = False

    def logs(self, step: int) -> bool:
        """Whether this step is printed and sent to the trackers."""
        return self._due(self.log_every, step) or (self.log_first and step == 1)

    def evaluates(self, step: int) -> bool:
        """Whether an evaluation follows this step."""
        return self._due(self.eval_every, step)

    def saves(self, step: int) -> bool:
        """Whether a checkpoint follows this step."""
        return self._due(self.save_every, step)

    def left(self, every: float, step: int) -> int:
        """How often something that happens at this interval is still to come after a step."""
        if every == math.inf or step >= self.n_steps:
            return 0
        return int(self.n_steps // every - step // every) + (self.n_steps % every > 0)

    def _due(self, every: float, step: int) -> bool:
        return every < math.inf and (step % every == 0 or step == self.n_steps)


def schedule_of(training: TrainingSection, n_steps: int, steps_per_epoch: int) -> Schedule:
    """The intervals that the configuration asks for; `best` saves where an evaluation says so, and at the end."""

    def every(strategy: str, interval: float) -> float:
        # an interval that is never met leaves the last step
        of = {"no": math.inf, "epoch": steps_per_epoch, "steps": steps_of(interval, n_steps), "best": n_steps}
        return of[strategy]

    return Schedule(
        n_steps,
        log_every=every(training.logging_strategy, training.logging_steps),
        eval_every=every(training.eval_strategy, training.eval_steps or training.logging_steps),
        save_every=every(training.save_strategy, training.save_steps),
        log_first=training.logging_first_step,
    )
