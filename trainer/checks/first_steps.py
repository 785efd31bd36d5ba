"""What the first steps of a run show of the rest: how long it will take, and whether clipping binds at every step."""

from __future__ import annotations

import math
from statistics import median

from ...instrument.judge.explain.finding import clock
from ...instrument.messages import say

# The first steps warm caches up; by then their rate is that of the run. Shorter runs are over before it helps.
TIMED, WORTH = 20, 100
# So many norms tell a share of 0.9 from a half; the first of a LoRA adapter are small, with B still at 0.
WATCHED, BINDS = 50, 0.9


class FirstSteps:
    """Looks at the first steps of a start, and then no more.

    Args:
        limit: training.max_grad_norm; 0 clips nothing.
        n_steps: of the run.
    """

    def __init__(self, limit: float, n_steps: int):
        self._limit, self._n_steps = limit, n_steps
        self._norms: list[float] = []
        self._seen = 0

    @property
    def over(self) -> bool:
        """Whether there is nothing left to look at."""
        return self._seen > WATCHED

    def step(self, step: int, grad_norm: float, seconds_left: float) -> list[str]:
        """What there is to say after a step; at most one sentence of each kind in a run."""
        if self.over:
            return []
        self._seen += 1
        if math.isfinite(grad_norm):
            self._norms.append(grad_norm)
        said = []
        if self._seen == TIMED and self._n_steps >= WORTH:
            said.append(say("first.hours", hours=clock(seconds_left), steps=self._n_steps - step))
        if self._seen == WATCHED and self._limit > 0 and len(self._norms) > WATCHED // 2:
            share = sum(norm > self._limit for norm in self._norms) / len(self._norms)
            if share >= BINDS:
                values = {"limit": self._limit, "n": len(self._norms), "median": median(self._norms)}
                said.append(say("first.clipping", share=100 * share, **values))
        return said
