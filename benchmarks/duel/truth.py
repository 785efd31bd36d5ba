"""What is wrong with a log, as keys: what is planted, and what a contender named, are compared by code."""

from __future__ import annotations

from dataclasses import dataclass

CAUSES = {
    "forward_nonfinite": "a forward pass is NaN or inf",
    "backward_nonfinite": "gradients alone are NaN or inf",
    "no_gradient": "no gradient reaches a weight",
    "diverged": "updates do harm",
    "not_learning": "updates are too small to matter",
    "overfitting": "evaluation turned while training went on falling",
    "by_heart": "the rows are known by heart",
}
LOST = {
    "steps": "every step since; the adapter is that of the step before",
    "adapter_or_steps": "the adapter, unless a scaler with a fused optimizer skipped the updates",
    "windows": "the updates of some steps",
    "everything": "nothing was learned at any step",
    "since": "what was learned, from that step on",
    "nothing": "nothing: an earlier checkpoint is better",
}
ACTIONS = {
    "earlier": "go back to a checkpoint before it, in bf16, or with what overflows in fp32",
    "lower_rate": "a lower learning rate",
    "higher_rate": "a higher learning rate",
    "look_at_gradient": "look at requires_grad or the loss scale",
    "keep_best": "keep the best checkpoint, fewer epochs or more rows",
    "look_at_rows": "look at the rows of those steps",
}


@dataclass(frozen=True)
class Truth:
    """What is planted in a log; a healthy one has no cause.

    Attributes:
        cause, lost, action: keys of CAUSES, LOST and ACTIONS.
        step: the first bad one; None where there is no such step.
    """

    cause: str | None = None
    lost: str | None = None
    action: str | None = None
    step: int | None = None


@dataclass(frozen=True)
class Named:
    """What a contender said of a log: sets, for it may say several things.

    Attributes:
        alarms: sentences that ask for attention, to be printed.
        steps: that it named as the first bad one.
    """

    alarms: tuple[str, ...] = ()
    causes: frozenset[str] = frozenset()
    lost: frozenset[str] = frozenset()
    actions: frozenset[str] = frozenset()
    steps: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Score:
    """One log, one contender. `step` is within the logging interval."""

    alarm: bool
    cause: bool
    step: bool
    lost: bool
    action: bool


def score(truth: Truth, named: Named, interval: int) -> Score:
    """Compares them; of a healthy log only the alarm counts."""
    near = any(truth.step is not None and abs(step - truth.step) <= interval for step in named.steps)
    return Score(
        alarm=bool(named.alarms),
        cause=truth.cause in named.causes,
        step=truth.step is None or near,
        lost=truth.lost in named.lost,
        action=truth.action in named.actions,
    )
