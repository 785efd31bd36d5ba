from __future__ import annotations

from typing import Any

import pytest
from lora_train.trainer.importer.llamafactory import llamafactory

MINIMAL = {"model_name_or_path": "owner/model", "stage": "sft", "finetuning_type": "lora", "dataset": "identity"}
VERSION_1 = {
    "model": "owner/model",
    "train_dataset": "rows.yaml",
    "peft_config": {"name": "lora", "r": 16, "lora_alpha": 32, "target_modules": "all"},
}


def values(**keys: Any) -> dict[str, Any]:
    draft = llamafactory({**MINIMAL, **keys})
    assert draft.refused == []
    return draft.values


def left(**keys: Any) -> dict[str, str]:
    return {left.key: left.weight for left in llamafactory({**MINIMAL, **keys}).left}


def test_defaults_are_llama_factorys():
    found = values(lora_rank=16)
    assert (found["lora.r"], found["lora.lora_alpha"], found["lora.target_modules"]) == (16, 32, "all-linear")
    assert (found["data.cutoff_len"], found["training.gradient_checkpointing"]) == (2048, True)
    assert (found["training.lr_scheduler_type"], found["training.optim"]) == ("linear", "adamw_torch")


def test_targets_are_cut_at_commas_and_all_is_every_linear_layer():
    assert values(lora_target="q_proj, v_proj")["lora.target_modules"] == ["q_proj", "v_proj"]
    assert values(lora_target="all")["lora.target_modules"] == "all-linear"


def test_four_bits_have_double_quantization_unless_it_is_off():
    assert values(quantization_bit=4)["quantization.bnb_4bit_use_double_quant"] is True
    assert values(quantization_bit=4, double_quantization=False)["quantization.bnb_4bit_use_double_quant"] is False
    assert values(quantization_bit=8)["quantization.load_in_8bit"] is True


def test_disabled_checkpointing_is_the_opposite():
    assert "training.gradient_checkpointing" not in values(disable_gradient_checkpointing=True)


def test_what_is_trained_on():
    assert values(train_on_prompt=True)["data.train_on_inputs"] is True
    assert left(mask_history=True) == {"mask_history": "rows"}
    assert values(stage="pt")["data.format"] == "text"


def test_all_data_sets_are_named():
    draft = llamafactory({**MINIMAL, "dataset": "identity, alpaca_en_demo", "eval_dataset": "first, second"})
    assert draft.values["data.eval"] == ["first", "second"]
    assert draft.values["data.train"] == ["identity", "alpaca_en_demo"]
    assert draft.left == []
    assert "dataset_info.json" in draft.remarks["data.train"]


def test_evaluation_needs_rows():
    found = values(val_size=0.1, eval_strategy="steps", eval_steps=500)
    assert (found["data.eval_fraction"], found["training.eval_strategy"], found["training.eval_steps"]) == (
        0.1,
        "steps",
        500,
    )
    assert "training.eval_strategy" not in values(eval_strategy="steps", load_best_model_at_end=True)
    assert left(val_size=100) == {"val_size": "harmless"}


def test_version_1_is_read():
    draft = llamafactory({**VERSION_1, "micro_batch_size": 2, "global_batch_size": 8, "bf16": True})
    assert draft.refused == []
    expected = {"lora.r": 16, "lora.lora_alpha": 32.0, "lora.target_modules": "all-linear", "training.bf16": True}
    assert {key: draft.values[key] for key in expected} == expected
    assert draft.values["training.per_device_train_batch_size"] == 2
    assert draft.values["training.gradient_accumulation_steps"] == 4


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        ({"finetuning_type": "full"}, "no LoRA adapter"),
        ({"stage": "dpo"}, "no supervised fine-tuning"),
        ({"do_predict": True}, "trains nothing"),
        ({"dataset": None}, "trains nothing"),
        ({"quantization_method": "hqq", "quantization_bit": 4}, "quantized"),
        ({"quantization_bit": 3}, "quantized"),
        ({"template": "qwen3_vl"}, "pictures"),
        ({"image_max_pixels": 262144}, "pictures"),
    ],
)
def test_what_it_cannot_do_it_names(keys, word):
    (reason,) = llamafactory({**MINIMAL, **keys}).refused
    assert word in reason


@pytest.mark.parametrize(
    ("key", "value", "weight"),
    [
        ("pissa_init", True, "adapter"),
        ("loraplus_lr_ratio", 16.0, "optimizer"),
        ("use_dora", True, "adapter"),
        ("deepspeed", "ds.json", "memory"),
        ("plot_loss", True, "harmless"),
        ("rope_scaling", "yarn", "model"),
        ("new_special_tokens", "<a>", "tokens"),
    ],
)
def test_what_is_left_over_is_weighed(key, value, weight):
    assert left(**{key: value}) == {key: weight}
