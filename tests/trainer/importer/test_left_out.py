from __future__ import annotations

import pytest
from lora_train.instrument.messages import catalogue
from lora_train.trainer.config.schema import sections
from lora_train.trainer.importer.left_out import CHANGES, HARMLESS, MEMORY, WHY, is_default, is_off, weight


def test_a_key_has_one_weight():
    assert not HARMLESS & MEMORY
    assert not (HARMLESS | MEMORY) & CHANGES.keys()


def test_every_weight_has_its_sentence():
    assert {*CHANGES.values(), "harmless", "memory", "unknown"} == WHY.keys()
    assert set(WHY.values()) <= catalogue("en").keys()


def test_no_key_of_ours_is_without_a_counterpart():
    ours = {key for schema in sections().values() for key in schema.model_fields}
    assert sorted((HARMLESS | MEMORY | CHANGES.keys()) & ours) == []


@pytest.mark.parametrize(
    ("key", "word"),
    [("wandb_project", "harmless"), ("deepspeed", "memory"), ("use_dora", "adapter"), ("logging_step", "unknown")],
)
def test_weight(key, word):
    assert weight(key) == word


def test_off_and_default():
    assert all(is_off(value) for value in (None, False, 0, 0.0, "", "none", "no", [], {}))
    assert not any(is_off(value) for value in (True, 1, "yes", [0], {"a": None}))
    assert is_default("train_sampling_strategy", "random")
    assert not is_default("train_sampling_strategy", "group_by_length")
