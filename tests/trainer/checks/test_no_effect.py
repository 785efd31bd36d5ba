"""Every rule of keys that change nothing: told when set in vain, silent otherwise."""

from __future__ import annotations

from typing import Any

import pytest
from lora_train.trainer.checks.no_effect import RULES, without_effect
from lora_train.trainer.config.schema import Config

MINIMAL: dict[str, Any] = {"model": {"name_or_path": "o/m"}, "data": {"train": "o/d", "format": "text"}}


def told(**sections: Any) -> list[str]:
    merged = {name: {**MINIMAL.get(name, {}), **values} for name, values in {**MINIMAL, **sections}.items()}
    return list(without_effect(Config.model_validate(merged)))


def test_defaults_are_silent():
    assert told() == []


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"precision": {"min_loss_scale": 4.0}}, "precision.min_loss_scale has no effect with training.fp16=false"),
        (
            {"precision": {"min_loss_scale": 4.0, "loss_scale": 8.0}, "training": {"fp16": True}},
            "precision.min_loss_scale has no effect with precision.loss_scale",
        ),
        ({"precision": {"fp32_modules": ["x"]}}, "precision.fp32_modules has no effect with training.fp16=false"),
        ({"precision": {"on_collapse": "stop", "max_heals": 1}}, "precision.max_heals has no effect"),
        ({"training": {"eval_steps": 5}}, "training.eval_steps has no effect with training.eval_strategy=no"),
        ({"training": {"save_strategy": "epoch", "save_steps": 5}}, "training.save_steps has no effect"),
        ({"training": {"save_strategy": "no", "save_total_limit": 5}}, "training.save_total_limit has no effect"),
        ({"training": {"logging_strategy": "no", "logging_steps": 5}}, "training.logging_steps has no effect"),
        ({"training": {"greater_is_better": True}}, "training.greater_is_better has no effect"),
        ({"training": {"max_steps": 5, "num_train_epochs": 2}}, "training.num_train_epochs has no effect"),
        (
            {"data": {"packing": True}, "training": {"group_by_length": True}},
            "training.group_by_length has no effect with data.packing=true",
        ),
        ({"training": {"warmup_steps": 5, "warmup_ratio": 0.1}}, "training.warmup_ratio has no effect"),
        ({"training": {"lr_scheduler_type": "constant", "warmup_steps": 5}}, "training.warmup_steps has no effect"),
        ({"training": {"optim": "sgd", "adam_beta1": 0.8}}, "training.adam_beta1 has no effect with training.optim"),
        ({"training": {"run_name": "x"}}, "training.run_name has no effect with training.report_to=none"),
        ({"training": {"hub_model_id": "x"}}, "training.hub_model_id has no effect with training.push_to_hub=false"),
        ({"quantization": {"bnb_4bit_quant_type": "fp4"}}, "quantization.bnb_4bit_quant_type has no effect"),
        ({"quantization": {"llm_int8_threshold": 1.0}}, "quantization.llm_int8_threshold has no effect"),
        ({"instrument": {"enabled": False, "probe_every": 5}}, "instrument.probe_every has no effect"),
        ({"model": {"name_or_path": "./m", "revision": "x"}}, "model.revision has no effect with model.name_or_path"),
        (
            {
                "training": {"fp16": True},
                "quantization": {"load_in_4bit": True, "bnb_4bit_compute_dtype": "bfloat16"},
            },
            "bnb_4bit_compute_dtype=bfloat16 in an fp16 run",
        ),
    ],
)
def test_a_knob_turned_in_vain_is_told(sections, message):
    (sentence,) = told(**sections)
    assert message in sentence


def test_every_key_of_the_rules_exists():
    values = Config.model_validate(MINIMAL).model_dump()
    keys = [key for rule in RULES for key in rule[0]]
    assert all(key.partition(".")[2] in values[key.partition(".")[0]] for key in keys)
