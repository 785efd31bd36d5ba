"""PPO: whether the score of its answers rose, what the distance from the reference model cost, how large updates were.

Its lines have no loss that falls: the policy's is near 0 by construction. Column names are TRL's, those of its first
PPOTrainer (`ppo/`) too. What each ought to be: TRL's documentation of PPOTrainer and of its logging.
"""

from __future__ import annotations

import math

import numpy as np

from ....read.history import History
from ..finding import WINDOW, Finding, at_end, ends, median, scatter

SCORES = ("objective/scores", "ppo/mean_scores", "env/reward_mean")
AFTER_KL = ("objective/rlhf_reward",)
# Standard errors of a median of k values: 1.25 scatter / sqrt(k).
CHANGE = 3.0
# A mean divergence is never below 0; an estimate of few samples is, by a little.
NEGATIVE = -1.0
# Probabilities of new and old policy: TRL calls 2 and 0.1 too much.
RATIO = 2.0
# Of the updates, cut off by the clipping of PPO: 0.1 to 0.2 is usual.
CLIPPED = 0.3
# Of its first entropy; below it the policy has come to say one thing.
COLLAPSED = 0.1


def column(history: History, *names: str) -> np.ndarray:
    """The first of these columns that is there, finite values only."""
    for name in names:
        if name in history.steps:
            values = history.column(name)
            if np.isfinite(values).any():
                return values[np.isfinite(values)]
    return np.empty(0)


def moved(values: np.ndarray) -> tuple[float, float, float]:
    """Medians of both ends, and what they differ by by chance."""
    first, last = ends(values)
    spread = min(scatter(np.diff(values)) / math.sqrt(2), scatter(values)) if len(values) > 2 else 0.0
    return first, last, CHANGE * 1.25 * spread * math.sqrt(2 / at_end(len(values)))


def score(history: History) -> Finding | None:
    """Whether answers came to be worth more, and whether the penalty took it away again."""
    values = column(history, *SCORES)
    if history.task != "ppo" or len(values) < 2 * WINDOW:
        return None
    first, last, chance = moved(values)
    facts = {"first": first, "last": last, "chance": chance, "n": len(values)}
    after = column(history, *AFTER_KL)
    if last > first + chance:
        if len(after) >= 2 * WINDOW:
            before, now, apart = moved(after)
            if now < before - apart:
                return Finding("loss", "watch", "explain.ppo_penalty", facts | {"before": before, "now": now})
        return Finding("loss", "healthy", "explain.ppo_rose", facts)
    if last < first - chance:
        return Finding("loss", "watch", "explain.ppo_fell", facts)
    return Finding("loss", "note", "explain.ppo_flat", facts)


def divergence(history: History) -> Finding | None:
    """A KL below 0 cannot be: the samples are not drawn from the policy whose probabilities are counted."""
    values = column(history, "objective/kl")
    if history.task != "ppo" or len(values) < WINDOW:
        return None
    first, last = ends(values)
    if last < NEGATIVE:
        return Finding("loss", "watch", "explain.ppo_kl_negative", {"last": last, "n": len(values)})
    return Finding("loss", "note", "explain.ppo_kl", {"first": first, "last": last, "n": len(values)})


def updates(history: History) -> Finding | None:
    """How far one update moved the policy."""
    ratio = column(history, "val/ratio")
    clipped = column(history, "policy/clipfrac_avg", "ppo/policy/clipfrac")
    if history.task != "ppo":
        return None
    if len(ratio) >= WINDOW:
        last = median(ratio[-WINDOW:])
        if not 1 / RATIO < last < RATIO:
            return Finding("loss", "watch", "explain.ppo_ratio", {"last": last})
    if len(clipped) >= WINDOW and median(clipped[-WINDOW:]) > CLIPPED:
        return Finding("loss", "watch", "explain.ppo_clipped", {"percent": 100 * median(clipped[-WINDOW:])})
    return None


def answers(history: History) -> Finding | None:
    """Answers that never end by themselves, and a policy that has come to say one thing."""
    ended = column(history, "val/num_eos_tokens")
    entropy = column(history, "objective/entropy", "ppo/policy/entropy")
    if history.task != "ppo":
        return None
    if len(entropy) >= 2 * WINDOW:
        first, last, chance = moved(entropy)
        if first > 0 and last < COLLAPSED * first and first - last > chance:
            return Finding("loss", "watch", "explain.ppo_entropy", {"first": first, "last": last})
    if len(ended) >= WINDOW and not ended[-WINDOW:].any():
        return Finding("loss", "note", "explain.ppo_no_end", {"n": len(ended)})
    return None


RULES = (score, divergence, updates, answers)
