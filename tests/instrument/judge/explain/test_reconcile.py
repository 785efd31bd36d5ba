"""No two findings of any run ask for opposite moves."""

from __future__ import annotations

import numpy as np
import pytest
from lora_train.instrument.judge.explain import explain
from lora_train.instrument.judge.explain.finding import Finding
from lora_train.instrument.judge.explain.reconcile import GRAVEST, MOVES, SILENCES, STRENGTH, reconcile
from lora_train.instrument.messages import catalogue

from .build import history

EVERY_MOVE = tuple(key for key in MOVES if MOVES[key])


def opposite(findings) -> list[tuple[str, str]]:
    """Pairs that are shown with their advice and disagree."""
    speaking = [f for f in findings if f.repeats is None and f.hint("en")]
    return [
        (one.key, other.key)
        for one in speaking
        for other in speaking
        for target in MOVES.get(one.key, {}).keys() & MOVES.get(other.key, {}).keys()
        if MOVES[one.key][target] != MOVES[other.key][target]
    ]


def test_every_key_of_its_tables_is_a_sentence_and_every_move_is_advised():
    sentences = catalogue("en")
    named = {*MOVES, *STRENGTH, *SILENCES, *(key for keys in SILENCES.values() for key in keys)}
    assert named - sentences.keys() == set()
    assert {key for key in EVERY_MOVE if f"{key}.hint" not in sentences} == set()


def test_advice_that_moves_a_setting_is_in_the_table():
    """Who adds a hint that names a rate or a length says here which way it goes."""
    words = (
        "training.learning_rate",
        "training.num_train_epochs",
        "training.max_steps",
        "lora.r",
        "training.eval_steps",
    )
    free = {"explain.plateau_rate", "explain.warm_up_long"}
    moving = {
        key.removesuffix(".hint")
        for key, text in catalogue("en").items()
        if key.startswith("explain.") and key.endswith(".hint") and any(word in text for word in words)
    }
    assert moving - MOVES.keys() - free == set()


@pytest.mark.parametrize("seed", range(300))
def test_findings_drawn_at_random_never_contradict(seed):
    random = np.random.default_rng(seed)
    drawn = random.choice(len(EVERY_MOVE), size=random.integers(2, 9), replace=False)
    verdicts = random.choice(GRAVEST, size=len(drawn))
    found = [Finding("loss", str(v), EVERY_MOVE[i], {}) for i, v in zip(drawn, verdicts, strict=True)]
    kept = [finding for finding in reconcile(found) if finding.advises]
    for target in {target for finding in kept for target in MOVES[finding.key]}:
        assert len({MOVES[finding.key][target] for finding in kept if target in MOVES[finding.key]}) == 1
    silenced = {key for finding in found for key in SILENCES.get(finding.key, ())}
    heard = [finding for finding in found if finding.key not in silenced]
    strongest = min(heard, key=lambda f: (GRAVEST.index(f.verdict), (*STRENGTH, f.key).index(f.key)))
    assert strongest.key in {finding.key for finding in kept}


def random_history(random: np.random.Generator):
    """Losses, evaluations and norms of any course: level, falling, rising, turning, broken, rounded, sparse."""
    n = int(random.integers(1, 300))
    t = np.linspace(0, 1, n)
    courses = (0 * t, -t, t, np.exp(-5 * t), np.abs(t - random.random()), np.where(t > 0.5, 2.0, 0.0))

    def series(scale: float) -> np.ndarray:
        values = 2 + random.normal() * scale * courses[random.integers(len(courses))]
        values = values * np.exp(random.choice([0.001, 0.05, 0.5]) * random.standard_normal(n))
        if random.random() < 0.2:
            values[random.integers(n) :] = random.choice([0.0, np.nan, np.inf])
        return np.round(values, 4) if random.random() < 0.5 else values

    own = random.random() < 0.5
    at = np.unique(random.integers(0, n, size=random.integers(0, 30)))
    evals = {"step": at + 1.0, "eval_loss": series(1.0)[at], "eval_runtime": random.uniform(0.1, 5000, len(at))}
    evals["eval_samples_per_second"] = np.full(len(at), random.uniform(0.1, 100))
    return history(
        kind="run" if own else str(random.choice(["trainer", "log"])),
        evals=evals if len(at) else None,
        coarse=1 if own else int(random.choice([1, 10, 200])),
        finished=bool(random.random() < 0.5),
        loss=series(1.0),
        grad_norm=np.abs(series(2.0)),
        learning_rate=2e-4 * (courses[random.integers(len(courses))] + 1.5),
        epoch=t * random.choice([0.3, 1.0, 20.0]),
        step_seconds=np.exp(0.1 * random.standard_normal(n)),
        tokens=np.full(n, 1000.0),
    )


@pytest.mark.parametrize("block", range(10))
def test_runs_drawn_at_random_never_get_opposite_advice(block):
    for seed in range(100 * block, 100 * (block + 1)):
        found = explain(random_history(np.random.default_rng(seed)))
        assert opposite(found) == [], seed
        wrong = any(finding.verdict == "wrong" for finding in found)
        assert not (wrong and any(f.verdict == "healthy" and f.topic == "outcome" for f in found)), seed
        assert found[0].topic == "overall"


def test_the_graver_finding_keeps_its_advice_and_the_other_its_fact():
    rose = Finding("eval_loss", "wrong", "explain.loss_rose", {"first": 1.0, "last": 2.0, "lowest": 1.0})
    plateau = Finding("loss", "note", "explain.plateau", {"since": 1, "loss": 1.0, "moved": 0.0, "epochs": 2.0})
    found = reconcile([plateau, rose])
    assert [(f.key, f.advises) for f in found] == [("explain.plateau", False), ("explain.loss_rose", True)]
    assert found[0].hint("en") is None


def test_a_coarse_log_does_not_call_flat_what_it_hid():
    flat = Finding("loss", "watch", "explain.loss_flat", {"first": 0.2, "last": 0.2, "chance": 0.1})
    coarse = Finding("loss", "note", "explain.coarse_stock", {"every": 200, "first": 0.3, "seen": 0.2, "share": 69.0})
    assert [f.key for f in reconcile([flat, coarse])] == ["explain.coarse_stock"]


def test_of_a_topic_the_gravest_stands_first():
    keys = [("note", "explain.above_one"), ("healthy", "explain.grad_spread"), ("wrong", "explain.exploding")]
    found = reconcile([Finding("grad_norm", verdict, key) for verdict, key in keys])
    assert [finding.verdict for finding in found] == ["wrong", "healthy", "note"]
