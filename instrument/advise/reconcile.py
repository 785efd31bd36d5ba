"""No two rules, and no rule and explain, ask for opposite moves of one setting.

Each sentence says what its command moves (MOVES); the stronger evidence speaks, and the other keeps its fact without
its command. What several trials say is stronger than what one run says, but a reader of both texts must not be sent
both ways: a command that is opposite to what explain asks of the same run is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..judge.explain.reconcile import CLIP, DOWN, EVALUATIONS, LENGTH, RATE, UP
from ..judge.explain.reconcile import MOVES as OF_EXPLAIN
from .advice import Advice
from .study import Study

MOVES: dict[str, dict[str, int]] = {
    "advise.p4_long": {LENGTH: DOWN},
    "advise.p4_short": {LENGTH: UP},
    "advise.p6_bound": {LENGTH: UP},
    "advise.p1_not_fitted": {LENGTH: UP},
    "advise.p3_vary": {LENGTH: UP},
    "advise.p15_border": {},
    "advise.p16_none": {},
    "advise.p16_unstable": {},
    "advise.p17_always": {CLIP: UP},
    "advise.p19_best": {},
    "advise.p20_few": {EVALUATIONS: UP},
}
"""What the command of a sentence moves, and which way; p2_edge moves its own key, either way."""
LENGTHENS = ("advise.p8_linear", "advise.p8_cosine", "advise.p8_constant", "advise.p8_wsd", "advise.p8_other")
STRENGTH = (
    "advise.p15_border", "advise.p4_long", "advise.p4_short", "advise.p2_edge", "advise.p6_bound", "advise.p1_edge",
    "advise.p1_not_fitted", "advise.p3_vary", *LENGTHENS,
)  # fmt: skip
"""Strongest first; what is not named comes after, in the order of the rules."""


def moves(advice: Advice) -> dict[str, int]:
    """What an advice moves: nothing without a command."""
    if advice.step is None:
        return {}
    if advice.key in LENGTHENS:
        return {LENGTH: UP}
    if advice.key in ("advise.p2_edge", "advise.p1_edge") and advice.values.get("key", "rate") in (
        "training.learning_rate",
        "rate",
    ):
        side = advice.values.get("side")
        up = side is None or side.key == "advise.highest"
        return {RATE: UP if up else DOWN}
    return MOVES.get(advice.key, {})


def asked_by_explain(study: Study, names: Sequence[str]) -> dict[str, int]:
    """What explain asks of these runs where they agree."""
    asked: dict[str, int] = {}
    for trial in study.trials:
        if trial.name not in names:
            continue
        for finding in trial.findings:
            if not finding.advises or finding.repeats is not None or not finding.hint("en"):
                continue
            for target, way in OF_EXPLAIN.get(finding.key, {}).items():
                asked[target] = way if asked.get(target, way) == way else 0
    return asked


def reconcile(study: Study, advices: Sequence[Advice]) -> list[Advice]:
    """The advice in its order, commands that would contradict left out."""
    order = {key: place for place, key in enumerate(STRENGTH)}
    asked: dict[str, int] = {}
    quiet = set()
    for advice in sorted(advices, key=lambda advice: order.get(advice.key, len(order))):
        own = moves(advice)
        theirs = asked_by_explain(study, advice.trials[:1]) if own else {}
        against = any(asked.get(target, way) != way or theirs.get(target, way) == -way for target, way in own.items())
        if against:
            quiet.add(id(advice))
        else:
            asked |= own
    return [replace(advice, step=None) if id(advice) in quiet else advice for advice in advices]
