"""Models that PEFT's tests ask the hub for, of random weights: a hub cache that is found without a network.

The same architectures and about the same sizes as the originals; what they compute is compared with itself alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as of
from transformers import PretrainedConfig

REVISION = "0" * 40
_SIZES: dict[str, Any] = {"vocab_size": 1000, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
_WIDE: dict[str, Any] = {**_SIZES, "intermediate_size": 64}
_GROUPED: dict[str, Any] = {**_WIDE, "num_key_value_heads": 2}
_GPT: dict[str, Any] = {"vocab_size": 1000, "n_embd": 32, "n_layer": 2, "n_head": 4}
_OPT: dict[str, Any] = {**_SIZES, "word_embed_proj_dim": 16, "ffn_dim": 32}
_T5: dict[str, Any] = {
    "vocab_size": 1000, "d_model": 32, "d_kv": 8, "d_ff": 37, "num_layers": 2, "num_heads": 4,
    "decoder_start_token_id": 0,
}  # fmt: skip
_BART: dict[str, Any] = {
    "vocab_size": 1000, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
}  # fmt: skip
MODELS: dict[str, tuple[str, PretrainedConfig]] = {
    "peft-internal-testing/tiny-random-OPTForCausalLM": ("OPTForCausalLM", of.OPTConfig(**_OPT)),
    "peft-internal-testing/opt-125m": ("OPTForCausalLM", of.OPTConfig(**_OPT)),
    "peft-internal-testing/tiny-random-GPT2LMHeadModel": ("GPT2LMHeadModel", of.GPT2Config(**_GPT)),
    "peft-internal-testing/tiny-random-gpt2": ("GPT2LMHeadModel", of.GPT2Config(**_GPT)),
    "hf-internal-testing/tiny-random-gpt2": ("GPT2LMHeadModel", of.GPT2Config(**_GPT)),
    "peft-internal-testing/tiny-random-GPTJForCausalLM": ("GPTJForCausalLM", of.GPTJConfig(rotary_dim=4, **_GPT)),
    "peft-internal-testing/tiny-random-GPTNeoXForCausalLM": ("GPTNeoXForCausalLM", of.GPTNeoXConfig(**_WIDE)),
    "trl-internal-testing/tiny-random-LlamaForCausalLM": ("LlamaForCausalLM", of.LlamaConfig(**_WIDE)),
    "peft-internal-testing/tiny-random-LlamaForCausalLM": ("LlamaForCausalLM", of.LlamaConfig(**_WIDE)),
    "hf-internal-testing/tiny-random-LlamaForCausalLM": ("LlamaForCausalLM", of.LlamaConfig(**_WIDE)),
    "hf-internal-testing/tiny-random-MistralForCausalLM": ("MistralForCausalLM", of.MistralConfig(**_GROUPED)),
    "peft-internal-testing/tiny-dummy-qwen2": ("Qwen2ForCausalLM", of.Qwen2Config(**_GROUPED)),
    "hf-internal-testing/tiny-random-Gemma3ForCausalLM": (
        "Gemma3ForCausalLM",
        of.Gemma3TextConfig(head_dim=8, **_GROUPED),
    ),
    "peft-internal-testing/tiny-random-BloomForCausalLM": (
        "BloomForCausalLM",
        of.BloomConfig(vocab_size=1000, hidden_size=32, n_layer=2, n_head=4),
    ),
    "peft-internal-testing/tiny-random-T5ForConditionalGeneration": (
        "T5ForConditionalGeneration",
        of.T5Config(**_T5),
    ),
    "peft-internal-testing/tiny-random-T5ForConditionalGeneration-calibrated": (
        "T5ForConditionalGeneration",
        of.T5Config(**_T5),
    ),
    "peft-internal-testing/tiny-random-t5": (
        "T5ForConditionalGeneration",
        of.T5Config(**_T5),
    ),
    "peft-internal-testing/tiny-random-BartForConditionalGeneration": (
        "BartForConditionalGeneration",
        of.BartConfig(**_BART),
    ),
    "peft-internal-testing/tiny-random-BertModel": ("BertModel", of.BertConfig(**_WIDE)),
    "peft-internal-testing/tiny-random-RobertaModel": ("RobertaModel", of.RobertaConfig(**_WIDE)),
    "peft-internal-testing/tiny-random-DebertaModel": (
        "DebertaModel",
        of.DebertaConfig(**{**_WIDE, "hidden_size": 32}),
    ),
    "peft-internal-testing/tiny-random-DebertaV2Model": ("DebertaV2Model", of.DebertaV2Config(**_WIDE)),
    "peft-internal-testing/tiny-random-BertForSequenceClassification": (
        "BertForSequenceClassification",
        of.BertConfig(**_WIDE),
    ),
    "peft-internal-testing/tiny-random-RobertaForSequenceClassification": (
        "RobertaForSequenceClassification",
        of.RobertaConfig(**_WIDE),
    ),
    "trl-internal-testing/tiny-LlamaForSequenceClassification-3.2": (
        "LlamaForSequenceClassification",
        of.LlamaConfig(**{**_GROUPED, "num_labels": 1, "pad_token_id": 0}),
    ),
}  # fmt: skip


def fill_cache(cache: Path) -> None:
    """Writes every model where huggingface_hub would have put it (HF_HUB_CACHE)."""
    for name, (model, config) in MODELS.items():
        folder = cache / f"models--{name.replace('/', '--')}"
        torch.manual_seed(0)
        getattr(of, model)(config).save_pretrained(folder / "snapshots" / REVISION)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(REVISION)
