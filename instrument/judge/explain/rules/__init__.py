"""One file of rules a topic. A rule is a function of the history that returns a finding or None."""

from . import (
    evaluation,
    gradients,
    kinds,
    loss,
    metric,
    norms,
    outcome,
    policy,
    resources,
    rows,
    schedule,
    speed,
    stock,
)  # fmt: skip

RULES = (
    *outcome.RULES,
    *stock.RULES,
    *loss.RULES,
    *evaluation.RULES,
    *metric.RULES,
    *rows.RULES,
    *gradients.RULES,
    *norms.RULES,
    *schedule.RULES,
    *resources.RULES,
    *speed.RULES,
    *kinds.RULES,
    *policy.RULES,
)
"""In the order in which findings of equal weight are read."""
