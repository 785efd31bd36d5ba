"""A tiny model of each family that can be exported, every weight of it drawn, with an adapter that has moved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from transformers.models import gemma, gemma2, gemma3, gpt_neox, llama, qwen2, qwen3

SIZES: dict[str, Any] = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
GROUPED: dict[str, Any] = {
    **SIZES,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
GEMMA: dict[str, Any] = {**GROUPED, "head_dim": 32, "query_pre_attn_scalar": 32}
LLAMA3: Any = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
FAMILIES: dict[str, Any] = {
    "llama": (llama.LlamaForCausalLM, llama.LlamaConfig(**GROUPED)),
    "llama tied, wide heads": (
        llama.LlamaForCausalLM,
        llama.LlamaConfig(**GROUPED, head_dim=32, tie_word_embeddings=True, rope_parameters=LLAMA3),
    ),
    "qwen2": (qwen2.Qwen2ForCausalLM, qwen2.Qwen2Config(**GROUPED)),
    "qwen3": (qwen3.Qwen3ForCausalLM, qwen3.Qwen3Config(**GROUPED, head_dim=16, tie_word_embeddings=True)),
    "gemma": (gemma.GemmaForCausalLM, gemma.GemmaConfig(**GROUPED, head_dim=32)),
    "gemma2": (gemma2.Gemma2ForCausalLM, gemma2.Gemma2Config(**GEMMA, sliding_window=8)),
    "gemma3": (gemma3.Gemma3ForCausalLM, gemma3.Gemma3TextConfig(**GEMMA, sliding_window=8)),
    "gpt_neox": (
        gpt_neox.GPTNeoXForCausalLM,
        gpt_neox.GPTNeoXConfig(**SIZES, num_attention_heads=4, max_position_embeddings=128),
    ),
}


def make_base(family: str, folder: Path, tokenizer: Any) -> Path:
    """A folder with a model whose every weight is drawn, norms and biases included."""
    kind, config = FAMILIES[family]
    torch.manual_seed(0)
    model = kind(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_adapter(base: Path, folder: Path, **settings: Any) -> Path:
    """An adapter in PEFT's format on every linear layer, every weight drawn."""
    torch.manual_seed(1)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "init_lora_weights": False} | settings
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(task_type="CAUSAL_LM", **settings))
    model.save_pretrained(str(folder))
    return folder
