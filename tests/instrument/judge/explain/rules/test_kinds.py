"""Measures of other kinds of training: pairs and rewards."""

from __future__ import annotations

import numpy as np
import pytest
from lora_train.instrument.judge.explain import explain, lines, read_history
from lora_train.instrument.judge.explain.rules import evaluation, kinds, loss
from lora_train.instrument.read.history import History
from lora_train.instrument.show.compare import compare_runs, comparison_lines

from benchmarks.duel.plants import Plan
from benchmarks.duel.stock import train
from benchmarks.duel.truth import Truth

from ..build import falling, history
from .test_evaluation import evaluated

RANDOM = np.random.default_rng(0)
NOISE = 0.05 * RANDOM.standard_normal(100)
LEARNED = np.linspace(0.5, 0.85, 100) + NOISE


def trained(task: str, **columns) -> History:
    """A stock run with columns of its own."""
    made = history(kind="trainer", loss=columns.pop("loss", falling(100, 0.69, 0.3, 0.02)))
    made.task, made.trainer = task, "trl"
    for name, values in columns.items():
        made.steps[name] = values
    return made


@pytest.mark.parametrize(
    ("rule", "task", "columns", "key", "verdict"),
    [
        (kinds.pairs, "preference", {"rewards/accuracies": LEARNED}, "pairs_learned", "healthy"),
        (kinds.pairs, "reward", {"accuracy": LEARNED}, "pairs_learned", "healthy"),
        (kinds.pairs, "preference", {"rewards/accuracies": 0.52 + NOISE}, "pairs_toss", "watch"),
        (kinds.pairs, "preference", {"rewards/accuracies": np.full(100, 1.0)}, "pairs_given_away", "note"),
        (kinds.pairs, "seq_cls", {"accuracy": 0.5 + NOISE}, None, None),
        (
            kinds.margins,
            "preference",
            {"rewards/margins": np.linspace(0, 2, 100) + NOISE, "rewards/chosen": np.linspace(0, -1, 100)},
            "margin_both_fell",
            "note",
        ),
        (
            kinds.margins,
            "preference",
            {"rewards/margins": np.linspace(0, 2, 100), "rewards/chosen": np.linspace(0, 1, 100)},
            None,
            None,
        ),
        (kinds.reward, "grpo", {"reward": np.linspace(0.2, 0.8, 100) + NOISE}, "reward_rose", "healthy"),
        (kinds.reward, "grpo", {"reward": np.linspace(0.8, 0.2, 100) + NOISE}, "reward_fell", "watch"),
        (kinds.reward, "grpo", {"reward": 0.5 + NOISE}, "reward_flat", "note"),
        (kinds.same_rewards, "grpo", {"reward_std": np.where(np.arange(100) % 3, 0.0, 0.2)}, "reward_same", "note"),
        (kinds.same_rewards, "grpo", {"frac_reward_zero_std": 0.1 + 0 * NOISE}, None, None),
        (kinds.cut_off, "grpo", {"completions/clipped_ratio": np.linspace(0, 1, 100)}, "completions_cut", "note"),
    ],
)
def test_each_measure(rule, task, columns, key, verdict):
    found = rule(trained(task, **columns))
    assert (found and found.key.removeprefix("explain."), found and found.verdict) == (key, verdict)


def test_a_loss_of_zero_is_normal_for_grpo():
    loss = np.where(np.arange(100) % 2, 0.0, 0.01 * RANDOM.standard_normal(100))
    found = explain(trained("grpo", loss=loss, reward=np.linspace(0.2, 0.8, 100) + NOISE))
    assert [f.key for f in found if f.verdict in ("wrong", "watch") and f.topic == "loss"] == []


def test_a_loss_that_nobody_knows_may_rise():
    found = loss.course(trained("other", loss=falling(last=5.0)))
    assert found is not None
    assert (found.key, found.verdict) == ("explain.loss_rose_own", "note")


@pytest.mark.parametrize("task", ["grpo", "ppo"])
def test_no_evaluation_is_judged_by_a_loss_near_0(task):
    made = evaluated(1e-3 * np.random.default_rng(0).standard_normal(20))
    made.task = task
    assert [rule(made) for rule in (evaluation.course, evaluation.turned, evaluation.gap)] == [None] * 3


def test_a_flat_reward_is_told_from_noise_alone_in_nineteen_of_twenty():
    """Of 200 runs of noise, at most those that a rate of 1 in 20 allows (binomial, 99.9%: 20)."""
    draw = np.random.default_rng(1)
    moved = 0
    for _ in range(200):
        found = kinds.reward(trained("grpo", reward=draw.normal(1.0, 0.3, 100)))
        moved += found is not None and found.key != "explain.reward_flat"
    assert moved <= 20


def classifier(train: float, losses, steps=(30, 60, 90), told: int | None = None) -> History:
    made = history(
        kind="trainer", loss=train + 0.2 * NOISE, evals={"step": list(steps)[: len(losses)], "eval_loss": losses},
        config={"training": {"gradient_accumulation_steps": told}} if told else {},
    )  # fmt: skip
    made.task = "seq_cls"
    return made


@pytest.mark.parametrize(
    ("made", "k"),
    [
        (classifier(2.08, [0.69, 0.69, 0.68]), 3),
        (classifier(2.08, [0.69], told=3), 3),
        (classifier(2.08, [0.69], told=4), None),
        (classifier(2.08, [0.69]), None),
        (classifier(0.7, [0.69, 0.69, 0.68]), None),
        (classifier(0.7, [0.35, 0.3, 0.2]), None),
    ],
)
def test_a_loss_that_adds_up_micro_batches_is_named(made, k):
    found = kinds.added_up(made)
    assert (found.values["k"] if found else None) == k


def test_a_log_of_the_stock_trainer_that_adds_up_micro_batches(tmp_path):
    arguments = {"max_steps": 18, "logging_steps": 2, "gradient_accumulation_steps": 3, "learning_rate": 1e-4}
    arguments |= {"eval_strategy": "steps", "eval_steps": 6}
    plan = Plan("three", Truth(), arguments, task="classes", eval_rows=32, noise=0.2)
    state = train(plan, tmp_path, 0)
    assert state is not None
    both = [read_history(state), read_history(state)]
    assert "adds up the losses of 3 micro-batches" in "\n".join(lines(both[0], explain(both[0]), "en"))
    compared = comparison_lines(compare_runs(both), "en")
    assert sum("add up 3 micro-batches" in line for line in compared) == 2
