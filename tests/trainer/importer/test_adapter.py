from __future__ import annotations

import dataclasses

import peft
import pytest
from lora_train.trainer.config.schema import sections
from lora_train.trainer.importer.adapter import SAME, adapter
from lora_train.trainer.importer.draft import HEAD_MODULES
from lora_train.trainer.importer.left_out import weight
from lora_train.trainer.model import heads

SAVED = peft.LoraConfig(
    r=16, lora_alpha=32, lora_dropout=0.05, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
)


def saved(**changes) -> dict:
    keys = {key: sorted(v) if isinstance(v, set) else v for key, v in SAVED.to_dict().items()}
    return {**keys, "base_model_name_or_path": "owner/model", **changes}


def test_a_saved_adapter():
    draft = adapter(saved())
    expected = {"lora.r": 16, "lora.lora_alpha": 32.0, "lora.lora_dropout": 0.05, "model.name_or_path": "owner/model"}
    assert {key: draft.values[key] for key in expected} == expected
    assert sorted(draft.values["lora.target_modules"]) == ["q_proj", "v_proj"]
    assert draft.refused == []
    assert [left.key for left in draft.left if left.matters] == []


@pytest.mark.parametrize(
    ("key", "value", "weight"),
    [
        ("use_dora", True, "adapter"),
        ("rank_pattern", {"q_proj": 4}, "adapter"),
        ("layers_to_transform", [0, 1], "targets"),
        ("init_lora_weights", "pissa", "adapter"),
        ("lora_bias", True, "adapter"),
        ("target_parameters", ["experts.down_proj"], "targets"),
        ("trainable_token_indices", [1], "tokens"),
    ],
)
def test_another_adapter_is_told(key, value, weight):
    assert [(left.key, left.weight) for left in adapter(saved(**{key: value})).left if left.matters] == [(key, weight)]


@pytest.mark.parametrize(("key", "value"), [("peft_type", "IA3"), ("task_type", "SEQ_2_SEQ_LM")])
def test_what_it_cannot_do_it_names(key, value):
    (reason,) = adapter(saved(**{key: value})).refused
    assert value in reason


def test_every_argument_is_ours_or_weighed():
    ours = {key for schema in sections().values() for key in schema.model_fields} | SAME.keys() | {"peft_type"}
    fields = {field.name for field in dataclasses.fields(peft.LoraConfig)} - ours
    assert sorted(name for name in fields if weight(name) == "unknown") == []


@pytest.mark.parametrize(
    ("task", "ours"), [("SEQ_CLS", "seq_cls"), ("TOKEN_CLS", "token_cls"), ("TaskType.SEQ_CLS", "seq_cls")]
)
def test_a_classifier_is_one_here_too(task, ours):
    draft = adapter(saved(task_type=task, modules_to_save=["classifier", "score", "embed_tokens"]))
    assert draft.refused == []
    assert draft.values["model.task"] == ours
    assert draft.values["lora.modules_to_save"] == ["embed_tokens"]  # the head is saved by itself
    assert "lora.modules_to_save" not in adapter(saved(task_type=task, modules_to_save=["classifier"])).values


def test_the_heads_are_those_of_the_trainer():
    assert HEAD_MODULES == heads.HEAD_MODULES
