"""Studies of any kind: whatever runs hold, every rule answers in both languages and nothing contradicts."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from lora_train.instrument.advise import VERDICTS, advise, lines
from lora_train.instrument.advise.reconcile import moves
from lora_train.instrument.advise.sources import study_of

from ..judge.explain.test_reconcile import random_history

VALUES = {
    "training.learning_rate": [1e-5, 1e-4, 3e-4, "1e-4", None, float("nan"), float("inf"), 0, 0.0],
    "training.max_steps": [100, -1, None, 7],
    "training.seed": [1, 2, 3, None],
    "training.lr_scheduler_type": ["linear", "cosine", "constant", "SchedulerType.LINEAR", None, 3],
    "training.lr_scheduler_kwargs": [{}, {"num_decay_steps": 3}, None],
    "training.per_device_train_batch_size": [1, 8, None],
    "training.per_device_eval_batch_size": [1, 8, None],
    "training.gradient_accumulation_steps": [1, 4, None],
    "training.max_grad_norm": [0.0, 1.0, None],
    "lora.r": [8, 16, None],
    "lora.target_modules": [["q", "v"], "all-linear", ["q"], None],
    "lora.lora_dropout": [0, 0.1, True],
    "data.eval": ["a.jsonl", "a.jsonl", "a.jsonl", None],
}


def drawn(random: np.random.Generator):
    """A study of one to eight random histories with random settings."""
    histories = []
    for i in range(int(random.integers(1, 9))):
        history = random_history(random)
        for key, choices in VALUES.items():
            section, _, name = key.partition(".")
            value = choices[int(random.integers(len(choices)))]
            if value is not None and random.random() < 0.8:
                history.config.setdefault(section, {})[name] = value
        if random.random() < 0.1:
            history.steps, history.evals = history.steps.iloc[:0], history.evals.iloc[:0]
        if random.random() < 0.5:
            history.planned = int(random.choice([50, 100, 300]))
        histories.append((f"t{i}", f"runs/none/t{i}", history))
    sampler = ["grid", "tpe", 3, None][int(random.integers(4))]
    return study_of(histories, {"sampler": sampler})


@pytest.mark.parametrize("block", range(4))
def test_any_study_is_answered(block):
    for seed in range(10 * block, 10 * (block + 1)):
        study = drawn(np.random.default_rng(seed))
        found = advise(study)
        assert {advice.verdict for advice in found} <= VERDICTS.keys(), seed
        text = ["\n".join(lines(study, found, lang)) for lang in ("en", "ko")]
        odd = [line for part in text for line in part.splitlines() if re.search(r"\bnan\b|=None|\(None| inf\b", line)]
        assert odd == [], seed
        json.dumps([advice.as_json("ko") for advice in found], allow_nan=False)
        commands = [advice.step.commands for advice in found if advice.step is not None]
        assert all(0 < len(own) == len(set(own)) for own in commands), seed
        asked: dict[str, set[int]] = {}
        for advice in found:
            for target, way in moves(advice).items():
                asked.setdefault(target, set()).add(way)
        assert all(len(ways) == 1 for ways in asked.values()), seed
