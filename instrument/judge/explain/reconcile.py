"""One pass over all findings before anybody reads them: no two may ask for opposite moves.

A finding's key says which settings it would move and which way (MOVES); where two disagree, the one with the stronger
evidence speaks and the other keeps its fact without its advice, or goes where the fact is the same one read worse
(SILENCES). Of each topic the gravest stands first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .finding import TOPICS, Finding

UP, DOWN = 1, -1
RATE, LENGTH, RANK, EVALUATIONS, CLIP = "learning_rate", "steps", "rank", "evaluations", "max_grad_norm"
# By what a checkpoint is chosen: where the loss and a metric disagree, only one can be followed.
CHOICE, BY_LOSS, BY_METRIC = "checkpoint", UP, DOWN

MOVES: dict[str, dict[str, int]] = {
    "explain.loss_flat": {RATE: UP, RANK: UP},
    "explain.loss_little": {LENGTH: UP, RATE: UP},
    "explain.loss_rose": {RATE: DOWN},
    "explain.loss_turned": {RATE: DOWN},
    "explain.loss_blew_up": {RATE: DOWN},
    "explain.loss_blew_up_rate": {RATE: DOWN},
    "explain.loss_beyond": {RATE: DOWN},
    "explain.rate_far": {RATE: DOWN},
    "explain.rate_tiny": {RATE: UP},
    "explain.gradient_none_since": {RATE: DOWN},
    "explain.eval_rose": {RATE: DOWN},
    "explain.eval_wobble": {RATE: DOWN},
    "explain.eval_wobble_rows": {RATE: DOWN},
    "explain.exploding": {RATE: DOWN},
    "explain.vanishing": {RATE: DOWN},
    "explain.jagged_more": {RATE: DOWN},
    "explain.scale_restless": {RATE: DOWN},
    "explain.layers_lopsided": {RATE: DOWN},
    "explain.layers_lopsided_weights": {RATE: DOWN},
    "explain.stopped_without_remedy": {RATE: DOWN},
    "explain.healed_worse": {RATE: DOWN},
    "explain.overfitting": {RATE: DOWN, LENGTH: DOWN, CHOICE: BY_LOSS},
    "explain.eval_turned": {CHOICE: BY_LOSS},
    "explain.choice_metric": {CHOICE: BY_METRIC},
    "explain.accuracy_fell": {CHOICE: BY_METRIC},
    "explain.metric_fell": {CHOICE: BY_METRIC},
    "explain.lower_rose": {CHOICE: BY_METRIC},
    "explain.rows_overfit": {LENGTH: DOWN, CHOICE: BY_LOSS},
    "explain.rows_turned": {CHOICE: BY_LOSS},
    "explain.rows_rose": {RATE: DOWN},
    "explain.rows_same": {LENGTH: UP},
    "explain.by_heart": {LENGTH: DOWN},
    "explain.by_heart_sometime": {LENGTH: DOWN},
    "explain.zero_rounded": {LENGTH: DOWN},
    "explain.underfitting": {LENGTH: UP},
    "explain.plateau": {RANK: UP, RATE: UP, LENGTH: DOWN},
    "explain.plateau_rate": {LENGTH: UP},
    "explain.plateau_dropped": {RATE: UP},
    "explain.pairs_toss": {RATE: UP},
    "explain.reward_fell": {RATE: DOWN},
    **{f"explain.ppo_{what}": {RATE: DOWN} for what in ("fell", "penalty", "ratio", "clipped", "entropy")},
    "explain.warm_up_long": {},
    "explain.eval_rare": {EVALUATIONS: UP},
    "explain.eval_rare_dear": {EVALUATIONS: UP},
    "explain.eval_few": {EVALUATIONS: UP},
    "explain.eval_fell": {EVALUATIONS: UP},
    "explain.accuracy_few": {EVALUATIONS: UP},
    "explain.metric_few": {EVALUATIONS: UP},
    "explain.eval_missing": {EVALUATIONS: UP},
    "explain.eval_missing_stock": {EVALUATIONS: UP},
    "explain.time_eval": {EVALUATIONS: DOWN},
    "explain.eval_costly": {EVALUATIONS: DOWN},
    "explain.clipped_always": {CLIP: UP},
}
"""What the advice of a sentence moves, and which way."""

_FORWARD = (
    "explain.zero_no_labels", "explain.zero_other", "explain.zero_unknown_rate", "explain.zero_rate_frozen",
    "explain.zero_rate_moves", "explain.zero_from_start", "explain.loss_nan", "explain.loss_nan_frozen",
    "explain.loss_nan_moves", "explain.loss_nan_unknown",
)  # fmt: skip
_NO_GRADIENT = (
    "explain.gradient_never_finite", "explain.gradient_none_scale", "explain.gradient_none_since",
)  # fmt: skip
_COLLAPSED = (
    *_FORWARD, "explain.no_gradient", "explain.stopped", "explain.stopped_without_remedy", "explain.attached_stopped",
    "explain.attached_went_on", *_NO_GRADIENT, "explain.no_model", "explain.loss_blew_up",
    "explain.loss_blew_up_rate", "explain.loss_beyond",
)  # fmt: skip
STRENGTH = (
    *_COLLAPSED, "explain.healed_worse", "explain.exploding", "explain.vanishing", "explain.overfitting",
    "explain.rows_overfit", "explain.eval_rose", "explain.rows_rose", "explain.loss_rose", "explain.time_eval",
    "explain.eval_costly", "explain.underfitting", "explain.plateau_rate", "explain.plateau_dropped", "explain.plateau",
    "explain.loss_flat", "explain.loss_little",
)  # fmt: skip
"""Strongest evidence first; what is not named comes after, in the order in which rules speak."""

_FLAT = (
    "explain.loss_flat", "explain.loss_little", "explain.loss_early", "explain.loss_unclear", "explain.plateau",
    "explain.underfitting", "explain.eval_flat", "explain.eval_flat_rate",
)  # fmt: skip
# of the window in which it began a logged loss may be finite and the norm is not
_COURSE = (*_FLAT, "explain.backward")
_FEW_MEANS = ("explain.eval_few", "explain.eval_last_rose", "explain.eval_unmoved")
_ROWS_ROSE = ("explain.rows_overfit", "explain.rows_turned", "explain.rows_rose")
SILENCES: dict[str, tuple[str, ...]] = {
    # a line that is the mean of many steps shows neither single steps nor the fall before the first
    "explain.coarse_stock": (
        "explain.loss_flat", "explain.loss_little", "explain.jagged", "explain.jagged_more", "explain.stairs",
        "explain.spikes",
    ),
    **dict.fromkeys(_COLLAPSED, _COURSE),
    "explain.gradient_none_scale": _FLAT,  # the overflows are its cause
    # a gradient of a forward pass that is not finite is none either
    **dict.fromkeys(_FORWARD, (*_COURSE, *_NO_GRADIENT)),
    "explain.overfitting": ("explain.underfitting", "explain.loss_flat", "explain.loss_little"),
    "explain.loss_fell": ("explain.rate_tiny",),  # a rate that was printed with few decimals
    "explain.rate_tiny": (
        "explain.loss_flat", "explain.loss_little", "explain.loss_early", "explain.loss_flat_coarse",
        "explain.loss_unclear", "explain.eval_flat", "explain.eval_flat_rate",
    ),
    "explain.eval_rose": ("explain.underfitting", "explain.loss_flat", "explain.loss_little"),
    "explain.zero_from_start": (*_COURSE, "explain.gradient_never_finite", "explain.other_step_stock"),
    # rows tell what a few means cannot
    **dict.fromkeys(("explain.rows_fell", "explain.rows_same"), _FEW_MEANS),
    **dict.fromkeys(_ROWS_ROSE, (*_FEW_MEANS, "explain.underfitting")),
}  # fmt: skip
"""What is not worth saying beside a sentence: it reads the same numbers and knows less."""
GRAVEST = ("wrong", "watch", "undecided", "healthy", "note")


def reconcile(findings: Sequence[Finding]) -> list[Finding]:
    """The findings that may stand together, in the order a person asks, of each topic the gravest first."""
    there = {finding.key for finding in findings}
    silenced = {key for speaker in there for key in SILENCES.get(speaker, ())}
    kept = [finding for finding in findings if finding.key not in silenced]
    asked: dict[str, int] = {}
    quiet = set()
    for finding in sorted(kept, key=strength):
        moves = MOVES.get(finding.key, {})
        if any(asked.get(target, way) != way for target, way in moves.items()):
            quiet.add(id(finding))
        else:
            asked |= moves
    kept = [replace(finding, advises=False) if id(finding) in quiet else finding for finding in kept]
    if any(finding.verdict == "wrong" for finding in kept):  # that it went on to its end is no good news then
        kept = [replace(f, verdict="note") if f.key == "explain.finished" else f for f in kept]
    return sorted(kept, key=lambda finding: (list(TOPICS).index(finding.topic), GRAVEST.index(finding.verdict)))


def strength(finding: Finding) -> tuple[int, int]:
    """Sorts the gravest and best founded first."""
    known = STRENGTH.index(finding.key) if finding.key in STRENGTH else len(STRENGTH)
    return GRAVEST.index(finding.verdict), known
