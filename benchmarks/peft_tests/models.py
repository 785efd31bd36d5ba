"""Models that PEFT's tests ask the hub for, of random weights: a hub cache that is found without a network.

The same architectures and about the same sizes as the originals; what they compute is compared with itself alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTJConfig,
    LlamaConfig,
    OPTConfig,
    PretrainedConfig,
    Qwen2Config,
)

REVISION = "0" * 40
_SIZES: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
_GPT: dict[str, Any] = {"vocab_size": 1000, "n_embd": 32, "n_layer": 2, "n_head": 4}
MODELS: dict[str, PretrainedConfig] = {
    "peft-internal-testing/tiny-random-OPTForCausalLM": OPTConfig(
        vocab_size=1000, word_embed_proj_dim=16, ffn_dim=32, **_SIZES
    ),
    "peft-internal-testing/tiny-random-GPT2LMHeadModel": GPT2Config(**_GPT),
    "peft-internal-testing/tiny-random-GPTJForCausalLM": GPTJConfig(rotary_dim=4, **_GPT),
    "trl-internal-testing/tiny-random-LlamaForCausalLM": LlamaConfig(vocab_size=1000, intermediate_size=64, **_SIZES),
    "peft-internal-testing/tiny-dummy-qwen2": Qwen2Config(
        vocab_size=1000, intermediate_size=64, num_key_value_heads=2, **_SIZES
    ),
}


def fill_cache(cache: Path) -> None:
    """Writes every model where huggingface_hub would have put it (HF_HUB_CACHE)."""
    for name, config in MODELS.items():
        folder = cache / f"models--{name.replace('/', '--')}"
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / "snapshots" / REVISION)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(REVISION)
