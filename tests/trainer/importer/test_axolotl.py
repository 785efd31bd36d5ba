from __future__ import annotations

from typing import Any

import pytest
from lora_train.trainer.importer.axolotl import axolotl

MINIMAL = {
    "base_model": "owner/model",
    "adapter": "lora",
    "datasets": [{"path": "rows.jsonl", "type": "alpaca"}],
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_target_linear": True,
    "learning_rate": "2e-4",
}


def values(**keys: Any) -> dict[str, Any]:
    draft = axolotl({**MINIMAL, **keys})
    assert draft.refused == []
    return draft.values


def left(**keys: Any) -> dict[str, str]:
    return {left.key: left.weight for left in axolotl({**MINIMAL, **keys}).left}


def test_defaults_are_axolotls():
    found = values()
    assert (found["data.cutoff_len"], found["training.per_device_train_batch_size"]) == (512, 1)
    assert (found["training.num_train_epochs"], found["training.warmup_ratio"]) == (1.0, 0.03)
    assert (found["training.lr_scheduler_type"], found["training.optim"]) == ("cosine", "adamw_torch_fused")
    assert found["training.learning_rate"] == 2e-4
    assert "quantization.load_in_4bit" not in found


def test_qlora_is_nf4_with_double_quantization():
    found = values(adapter="qlora")
    assert found["quantization.load_in_4bit"] is True
    assert found["quantization.bnb_4bit_use_double_quant"] is True
    assert values(adapter="qlora", bnb_config_kwargs={"bnb_4bit_use_double_quant": False})[
        "quantization.bnb_4bit_use_double_quant"
    ] is False  # fmt: skip
    assert values(load_in_8bit=True)["quantization.load_in_8bit"] is True


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"micro_batch_size": 2, "gradient_accumulation_steps": 4}, 4),
        ({"micro_batch_size": 2, "batch_size": 8}, 4),
        ({"micro_batch_size": 2, "batch_size": 8, "gradient_accumulation_steps": 3}, 3),
        ({"micro_batch_size": 2, "batch_size": 1}, 1),
    ],
)
def test_the_old_batch_size_gives_the_accumulation(keys, expected):
    assert values(**keys)["training.gradient_accumulation_steps"] == expected


@pytest.mark.parametrize(
    ("keys", "strategy", "steps"),
    [
        ({"val_set_size": 0.1, "evals_per_epoch": 4, "num_epochs": 2}, "steps", 1 / 8),
        ({"val_set_size": 0.1, "evals_per_epoch": 1, "num_epochs": 1}, "epoch", None),
        ({"val_set_size": 0.1, "eval_steps": 50}, "steps", 50),
        ({"val_set_size": 0, "evals_per_epoch": 4}, None, None),
        ({"val_set_size": 0.1}, "epoch", None),
    ],
)
def test_evaluations_per_epoch_are_a_share_of_all_steps(keys, strategy, steps):
    found = values(**keys)
    assert (found.get("training.eval_strategy"), found.get("training.eval_steps")) == (strategy, steps)


def test_saves_per_epoch_are_a_share_of_all_steps():
    assert values(saves_per_epoch=2, num_epochs=4)["training.save_steps"] == 1 / 8
    assert values(saves_per_epoch=1, num_epochs=1)["training.save_strategy"] == "epoch"
    assert values(save_steps=50)["training.save_steps"] == 50


def test_early_stopping_without_rows_to_evaluate_on_is_no_setting():
    assert "training.early_stopping_patience" not in values(early_stopping_patience=3)
    assert values(early_stopping_patience=3, val_set_size=0.1)["training.early_stopping_patience"] == 3


@pytest.mark.parametrize(
    ("keys", "targets"),
    [
        ({"lora_target_linear": True, "lora_target_modules": ["q_proj"]}, "all-linear"),
        ({"lora_target_linear": None, "lora_target_modules": ["q_proj", "v_proj"]}, ["q_proj", "v_proj"]),
        ({"lora_target_linear": False, "lora_target_modules": r"layers.\d+.q_proj"}, r"layers.\d+.q_proj"),
    ],
)
def test_targets(keys, targets):
    assert values(**keys)["lora.target_modules"] == targets


def test_no_targets_are_told_because_peft_would_choose():
    assert left(lora_target_linear=None)["target_modules"] == "targets"


@pytest.mark.parametrize(
    ("kind", "row", "form"),
    [
        ("alpaca", {}, "alpaca"),
        ("completion", {}, "text"),
        ("chat_template", {}, "messages"),
        ("chat_template", {"field_messages": "conversations"}, "sharegpt"),
        ("sharegpt.load_role", {}, "sharegpt"),
        ("alpaca:phi", {}, None),
    ],
)
def test_kind_of_rows(kind, row, form):
    assert values(datasets=[{"path": "p", "type": kind, **row}]).get("data.format") == form


@pytest.mark.parametrize(
    ("rows", "train"),
    [
        ([{"path": "json", "data_files": ["a.jsonl", "b.jsonl"]}], ["a.jsonl", "b.jsonl"]),
        ([{"path": "./a.jsonl"}, {"path": "json", "data_files": "b.jsonl"}], ["./a.jsonl", "b.jsonl"]),
        ([{"path": "./a.jsonl", "type": "alpaca"}, {"path": "b.jsonl", "type": "alpaca"}], ["./a.jsonl", "b.jsonl"]),
        ([{"path": "org/a", "data_files": "b.jsonl"}], "b.jsonl"),
    ],
)
def test_all_files_are_trained_on(rows, train):
    assert values(datasets=rows)["data.train"] == train
    assert left(datasets=rows) == {}


@pytest.mark.parametrize(
    "rows",
    [
        [{"path": "org/a"}, {"path": "org/b"}],  # ids of the hub stand alone
        [{"path": "org/a"}, {"path": "b.jsonl"}],
        [{"path": "org/a", "type": "alpaca"}, {"path": "b.jsonl", "type": "completion"}],  # one format for all
    ],
)
def test_data_sets_that_cannot_stand_in_one_list_are_told(rows):
    assert values(datasets=rows)["data.train"] == "org/a"
    assert left(datasets=rows) == {"datasets": "rows"}


def test_what_a_row_says_of_its_parts_is_not_lost():
    rows = [{"path": "p", "type": "chat_template", "roles_to_train": ["user"], "train_on_eos": "all"}, {"path": "q"}]
    assert left(datasets=rows) == {
        "datasets": "rows",
        "datasets.roles_to_train": "rows",
        "datasets.train_on_eos": "rows",
    }


def test_a_pad_token_matters_to_nobody_and_an_end_token_does():
    assert left(special_tokens={"pad_token": "<pad>"}) == {}
    assert left(special_tokens={"eos_token": "<|im_end|>"}) == {"special_tokens": "tokens"}


def test_what_is_left_over_is_weighed():
    found = left(deepspeed="zero3.json", wandb_project="p", neftune_noise_alpha=5, a_new_key=1, relora=False)
    assert found == {
        "deepspeed": "memory",
        "wandb_project": "harmless",
        "neftune_noise_alpha": "loss",
        "a_new_key": "unknown",
    }


@pytest.mark.parametrize(
    ("name", "ours", "weight"),
    [
        ("adamw_bnb_8bit", "adamw_8bit", None),
        ("adamw_torch_4bit", "adamw_8bit", None),
        ("paged_adamw_32bit", "paged_adamw_32bit", None),
        ("muon", None, "optimizer"),
    ],
)
def test_optimizer(name, ours, weight):
    assert values(optimizer=name).get("training.optim") == ours
    assert left(optimizer=name).get("optimizer") == weight


@pytest.mark.parametrize(
    ("keys", "bf16", "fp16"),
    [
        ({"bf16": "auto", "fp16": None}, True, None),
        ({"bf16": False, "fp16": True}, None, True),
        ({"bf16": "full"}, True, None),
        ({"bfloat16": True}, True, None),
        ({"float16": True}, None, True),
        ({}, None, None),
    ],
)
def test_precision(keys, bf16, fp16):
    found = values(**keys)
    assert (found.get("training.bf16"), found.get("training.fp16")) == (bf16, fp16)


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        ({"adapter": None}, "no LoRA adapter"),
        ({"rl": "dpo"}, "no supervised fine-tuning"),
        ({"reward_model": True}, "no supervised fine-tuning"),
        ({"reward_model": True, "num_labels": 1, "model_type": "AutoModelForSequenceClassification"}, "supervised"),
        ({"num_labels": 3}, "no supervised fine-tuning"),
        ({"processor_type": "AutoProcessor"}, "pictures"),
        ({"gptq": True}, "quantized"),
        ({"lora_target_linear": None, "lora_target_parameters": ["experts.down_proj"]}, "bare parameters"),
    ],
)
def test_what_it_cannot_do_it_names(keys, word):
    (reason,) = axolotl({**MINIMAL, **keys}).refused
    assert word in reason


def test_a_classifier_by_the_class_of_its_model():
    found = axolotl({**MINIMAL, "model_type": "AutoModelForSequenceClassification", "num_labels": 3})
    assert found.refused == []
    assert found.values["model.task"] == "seq_cls"
    assert not found.values.keys() & {"data.train_on_inputs", "data.packing", "data.format", "model.problem_type"}
    assert [left.key for left in found.left if left.matters] == []
