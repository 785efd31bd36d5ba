"""Architectures people fine-tune, each from a tiny configuration: fused, in float32 and float16."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from lora_train.trainer.config.settings import with_settings
from lora_train.trainer.errors import UserError
from lora_train.trainer.loop.train import train_step
from lora_train.trainer.model.load import trainable

from ...conftest import VOCABULARY
from ..loop.test_train import make_components, make_config

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
# The stock models in transformers -> LoRA linears in a layer, and whether the loss keeps the model's own head.
FAMILIES = {
    "Qwen2": (7, False),
    "Qwen3": (7, False),
    "Mistral": (7, False),
    "Gemma": (7, False),
    "Gemma2": (7, True),
    "Phi3": (4, False),
}


@pytest.fixture(scope="module")
def folders(tiny_models, tmp_path_factory) -> dict[str, Path]:
    found = {}
    for name in FAMILIES:
        found[name] = tmp_path_factory.mktemp("families") / name
        torch.manual_seed(0)
        config = getattr(transformers, f"{name}Config")(**SIZES)
        getattr(transformers, f"{name}ForCausalLM")(config).save_pretrained(found[name])
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(tiny_models["llama"] / file, found[name])
    return found


@pytest.mark.parametrize("fp16", [False, True], ids=["fp32", "fp16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_fused_and_learns(folders, name, fp16):
    per_layer, own_head = FAMILIES[name]
    config = make_config(folders[name], fp16=fp16, learning_rate=1e-2, max_steps=6)
    if name == "Gemma2":
        with pytest.raises(UserError, match="does not support sdpa"):
            make_components(config)
        config = with_settings(config, {"model.attn_implementation": "eager"})
    components = make_components(config)
    assert components.patched.unfused == []
    assert sum(len(group.names) for group in components.patched.groups) == 2 * per_layer
    assert components.loss.own_head is own_head
    rows = [train_step(components, components.plan.rows(step)).tolist() for step in range(1, 7)]
    assert all(math.isfinite(row[0]) for row in rows)
    assert rows[-1][5] >= 4  # updates: the first fp16 steps may be skipped while the scale falls
    moved = [name for name, weight in trainable(components.model).items() if "lora_B" in name and bool(weight.any())]
    assert len(moved) == 2 * per_layer
    assert all(bool(torch.isfinite(weight).all()) for weight in trainable(components.model).values())
