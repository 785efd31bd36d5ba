"""Settings that popular advice gets wrong: each fires where it should, and its healthy twin does not."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lora_train.trainer.checks.tips import TIPS, Outlook, tips
from lora_train.trainer.config.schema import Config
from lora_train.trainer.dry_run.outlook import outlook_of

CALM = Outlook(
    n_steps=1000, steps_per_epoch=500, units=4000, units_per_step=8, warm_up=30, train_tokens=1_000_000,
    eval_tokens=10_000, n_evals=10, save_every=100, has_bf16=True,
)  # fmt: skip


def config_of(**training: Any) -> Config:
    sections: dict[str, Any] = {"model": {"name_or_path": "o/m"}, "data": {"train": "o/d", "eval": "o/e"}}
    for name in ("lora", "model"):
        sections.setdefault(name, {}).update(training.pop(name, {}))
    calm = {"learning_rate": 2e-4, "eval_strategy": "steps", "save_steps": 100, "bf16": True}
    return Config.model_validate({**sections, "training": calm | training})


FIRES = [
    ("few_updates", {}, {"n_steps": 99}, {"n_steps": 100}, "99 updates"),
    ("few_updates", {}, {"n_steps": 10, "units_per_step": 8}, {"n_steps": 100}, "each of 8 rows"),
    ("few_updates", {"optim": "sgd", "learning_rate": 0.1}, {"n_steps": 299}, {"n_steps": 300}, "299 updates"),
    ("batch_over_data", {}, {"units": 248, "units_per_step": 1024}, {"units": 1024, "units_per_step": 1024}, "1,024"),
    ("many_epochs", {"eval_strategy": "no"}, {"n_steps": 2505}, {"n_steps": 2500}, "5.01 epochs"),
    ("dear_evaluation", {}, {"eval_tokens": 1_000_000}, {"eval_tokens": 500_000}, "167%"),
    ("late_save", {}, {"n_steps": 99}, {"n_steps": 100}, "training.save_steps=100 of 99"),
    ("no_choice", {"load_best_model_at_end": True}, {"n_evals": 1}, {"n_evals": 2}, "1"),
    ("fp16", {"fp16": True, "bf16": False}, {"has_bf16": True}, {"has_bf16": False}, "bfloat16"),
]


@pytest.mark.parametrize(("name", "training", "ill", "well", "number"), FIRES)
def test_it_fires_with_its_number_and_not_on_its_twin(name, training, ill, well, number):
    config = config_of(**training)
    sentence = TIPS[name](config, replace(CALM, **ill))
    assert sentence is not None
    assert number in sentence
    assert TIPS[name](config, replace(CALM, **well)) is None


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"warmup_steps": 0.3}, "30% of them (300)"),
        ({"warmup_ratio": 0.25}, "training.warmup_ratio=0.25"),
        ({"warmup_steps": 0.1}, None),
        ({"warmup_steps": 201}, "training.warmup_steps=201 of 1,000"),
        ({"warmup_steps": 200}, None),
        ({"warmup_steps": 3, "warmup_ratio": 0.9}, None),  # the ratio has no effect
    ],
)
def test_warm_up(training, said):
    found = TIPS["warm_up_share"](config_of(**training), CALM)
    assert (found is None) if said is None else said in str(found)


@pytest.mark.parametrize(
    ("training", "fires"),
    [
        ({"learning_rate": 1e-3}, False),
        ({"learning_rate": 1.1e-3}, True),
        ({"learning_rate": 9e-6}, True),
        ({"learning_rate": 0.0}, False),  # nothing is to move
        ({"learning_rate": 5e-4, "lora": {"modules_to_save": ["lm_head"]}}, True),
        ({"learning_rate": 5e-4, "model": {"resize_embeddings": True}}, True),
        ({"learning_rate": 2e-6, "lora": {"modules_to_save": ["lm_head"]}}, False),
        ({"learning_rate": 0.1, "optim": "sgd"}, False),
        ({"learning_rate": 1e-4, "optim": "sgd"}, True),
    ],
)
def test_rates_by_optimizer_and_by_what_is_trained(training, fires):
    assert (TIPS["rate"](config_of(**training), CALM) is not None) is fires


def test_a_calm_run_is_told_nothing_and_an_unknown_outlook_is_not_judged():
    assert list(tips(config_of(), CALM)) == []
    told = list(tips(config_of(fp16=True, bf16=False, load_best_model_at_end=True), Outlook()))
    assert told == []


def test_the_story_of_a_table_of_tips():
    """Batch 128 x 8 on 248 rows, 30 epochs, warm-up of 0.3."""
    config = config_of(eval_strategy="no", warmup_steps=0.3)
    outlook = replace(CALM, n_steps=30, steps_per_epoch=1, units=248, units_per_step=1024, n_evals=0)
    text = "\n".join(tips(config, outlook))
    for said in ("30 updates", "1,024 rows", "30 epochs", "30% of them (9)", "save_steps=100 of 30"):
        assert said in text


def test_an_outlook_of_rows_that_were_read():
    example = SimpleNamespace(input_ids=torch.zeros(10), n_supervised=5)
    plan = SimpleNamespace(
        n_steps=lambda epochs, steps: 30, steps_per_epoch=10, units_per_step=4, units=lambda epoch: [(0,)] * 40,
        dataset=SimpleNamespace(examples=[example] * 40),
    )  # fmt: skip
    config = config_of(eval_steps=7, warmup_ratio=0.1)
    outlook: Any = outlook_of(config, plan, SimpleNamespace(examples=[example] * 3), torch.device("cpu"))  # type: ignore
    assert outlook == Outlook(30, 10, 40, 4, 3, 400, 30, 5, 100, False)
    assert outlook_of(config_of(eval_strategy="no"), plan, None, torch.device("cpu")).n_evals == 0  # type: ignore
    assert math.isinf(outlook_of(config_of(save_strategy="no"), plan, None, torch.device("cpu")).save_every)  # type: ignore
