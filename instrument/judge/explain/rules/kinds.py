"""Measures that other kinds of training have beside the loss: preference and reward pairs, and rewards of GRPO.

Column names are TRL's, which axolotl, LLaMA-Factory and Unsloth print too.
"""

from __future__ import annotations

import numpy as np

from ....read.history import History
from ...metrics import CLASSIFIERS
from ..finding import WINDOW, Finding, median
from .evaluation import evaluations, train_at
from .policy import column, moved

PAIRS = ("preference", "reward")
ACCURACIES = ("rewards/accuracies", "accuracy")
# Share of pairs ranked right: half is a coin toss, and of some hundred pairs a tenth above it is none.
TOSS, LEARNED = 0.5, 0.6
# Nearly all right within the first tenth of the run: something else than the answer's worth gives it away.
GIVEN_AWAY, EARLY = 0.98, 0.1
# Of the logged steps, groups whose answers were all worth the same.
SAME = 0.5
SHORT_OF_TOKENS = 0.5
# A training loss that is a whole number of times the evaluation's, to so much of it, at so many evaluations.
WHOLE, EVALUATIONS = 0.15, 3


def pairs(history: History) -> Finding | None:
    """Whether the chosen answers came to be preferred."""
    right = column(history, *ACCURACIES)
    if history.task not in PAIRS or len(right) < 2 * WINDOW:
        return None
    first, last, _ = moved(right)
    values = {"first": 100 * first, "last": 100 * last, "n": len(right)}
    early = median(right[: max(3, int(EARLY * len(right)))])
    if early >= GIVEN_AWAY:
        return Finding("loss", "note", "explain.pairs_given_away", values | {"early": 100 * early})
    if last < LEARNED:
        return Finding("loss", "watch", "explain.pairs_toss", values)
    return Finding("loss", "healthy", "explain.pairs_learned", values)


def margins(history: History) -> Finding | None:
    """Rewards of both answers: both may fall, their difference is what counts."""
    margin, chosen = column(history, "rewards/margins"), column(history, "rewards/chosen")
    if history.task != "preference" or len(margin) < 2 * WINDOW or len(chosen) < 2 * WINDOW:
        return None
    first, last, chance = moved(margin)
    before, now, _ = moved(chosen)
    values = {"first": first, "last": last, "before": before, "now": now}
    if last > first + chance and now < 0 and now < before:
        return Finding("loss", "note", "explain.margin_both_fell", values)
    return None


def reward(history: History) -> Finding | None:
    """Whether the reward rose: the loss of GRPO says nothing about it."""
    values = column(history, "reward", "rewards")
    if history.task != "grpo" or len(values) < 2 * WINDOW:
        return None
    first, last, chance = moved(values)
    facts = {"first": first, "last": last, "chance": chance, "n": len(values)}
    if last > first + chance:
        return Finding("loss", "healthy", "explain.reward_rose", facts)
    if last < first - chance:
        return Finding("loss", "watch", "explain.reward_fell", facts)
    return Finding("loss", "note", "explain.reward_flat", facts)


def same_rewards(history: History) -> Finding | None:
    """Groups whose answers are all worth the same have no advantage, and nothing is learned from them."""
    share = column(history, "frac_reward_zero_std")
    spread = column(history, "reward_std")
    if history.task != "grpo" or not (len(share) or len(spread)):
        return None
    same = float(np.mean(share)) if len(share) else float(np.mean(spread == 0))
    if same < SAME:
        return None
    return Finding("loss", "note", "explain.reward_same", {"percent": 100 * same})


def cut_off(history: History) -> Finding | None:
    """Answers that end at the limit and not by themselves: their reward is that of a torso."""
    clipped = column(history, "completions/clipped_ratio")
    if history.task != "grpo" or len(clipped) < WINDOW or median(clipped[-WINDOW:]) < SHORT_OF_TOKENS:
        return None
    return Finding("loss", "note", "explain.completions_cut", {"percent": 100 * median(clipped[-WINDOW:])})


def added_up(history: History) -> Finding | None:
    """The losses of gradient_accumulation_steps micro-batches, added up and not divided, as transformers 5.23 logs them
    for heads that do not take num_items_in_batch: the evaluation's are not, so the two differ by that factor.
    """
    if history.task not in (*CLASSIFIERS, "regression") or not history.stock:
        return None
    step, loss = evaluations(history)
    train = np.array([train_at(history, at)[0] for at in step])
    ratio = train[np.isfinite(train) & (loss > 0)] / loss[np.isfinite(train) & (loss > 0)]
    told = history.number("training.gradient_accumulation_steps")
    if len(ratio) < (1 if told else EVALUATIONS):
        return None
    first = ratio[:EVALUATIONS]  # later the two part for other reasons
    k = round(median(first))
    if k < 2 or (told and k != told) or (np.abs(first / k - 1) > WHOLE).any():
        return None
    values = {"k": k, "train": float(train[np.isfinite(train)][0]), "eval": float(loss[0]), "step": int(step[0])}
    return Finding("loss", "note", "explain.added_up", values)


RULES = (added_up, pairs, margins, reward, same_rewards, cut_off)
