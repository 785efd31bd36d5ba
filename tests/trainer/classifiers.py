"""Tiny encoders and decoders with a classification head, and rows whose label can be learned."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

GOOD, BAD = ("fine", "lovely", "warm", "clever", "bright"), ("dull", "cold", "empty", "slow", "grim")
PLAIN = ("the", "film", "story", "actors", "music", "is", "was", "and", "very", "a", "plot", "seems")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = [*SPECIAL, *PLAIN, *GOOD, *BAD]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
         "vocab_size": 40, "max_position_embeddings": 40, "pad_token_id": 0}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": SIZES,
    "roberta": SIZES,
    "xlm-roberta": SIZES,
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "vocab_size": 40, "pad_token_id": 0},
    "deberta-v2": {**SIZES, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "modernbert": {**SIZES, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3},
    "electra": {**SIZES, "embedding_size": 16},
    "llama": {**SIZES, "num_key_value_heads": 2, "bos_token_id": 2, "eos_token_id": 3},
    "qwen2": {**SIZES, "num_key_value_heads": 2, "bos_token_id": 2, "eos_token_id": 3},
    "gpt_neox": {**SIZES, "bos_token_id": 2, "eos_token_id": 3},
}


def tokenizer_of(model_inputs: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """Words, with [CLS] and [SEP] as BERT has them."""
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_input_names=list(model_inputs),
    )  # fmt: skip


def tiny(folder: Path, family: str, **settings: Any) -> Path:
    """A pretrained model of a family: the body alone, as an encoder is published, with the tokenizer."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**FAMILIES[family], **settings})
    if family in ("llama", "qwen2", "gpt_neox"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    else:
        model = AutoModel.from_config(config)
    path = folder / family
    model.save_pretrained(path)
    pairs = family in ("bert", "electra", "deberta-v2")
    names = ("input_ids", "token_type_ids", "attention_mask") if pairs else ("input_ids", "attention_mask")
    tokenizer_of(names).save_pretrained(path)
    return path


def sentences(n: int, seed: int = 0) -> list[tuple[str, bool]]:
    """Texts and whether they praise."""
    draw = random.Random(seed)
    rows = []
    for _ in range(n):
        praises = draw.random() < 0.5
        words = [draw.choice(PLAIN) for _ in range(draw.randint(2, 9))]
        words.insert(draw.randint(0, len(words)), draw.choice(GOOD if praises else BAD))
        rows.append((" ".join(words), praises))
    return rows


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def rows_of_kind(kind: str, n: int = 24, seed: int = 0) -> list[dict[str, Any]]:
    """Rows with one label, several, a value, two texts, or labels of words."""
    draw = random.Random(seed)
    found: list[dict[str, Any]] = []
    for text, praises in sentences(n, seed):
        other = draw.random() < 0.5
        label: Any = {
            "single": ("good" if praises else "bad"),
            "several": ["good"] * praises + ["bad"] * (not praises) + ["long"] * other,
            "value": (1.0 if praises else -1.0) + draw.random() / 2,
            "pair": int(praises),
        }.get(kind)
        if kind == "words":
            words = text.split()
            tags = ["B-GOOD" if word in GOOD else "B-BAD" if word in BAD else "O" for word in words]
            found.append({"tokens": words, "labels": tags})
        elif kind == "pair":
            found.append({"text": text, "text_pair": "the film", "label": label})
        else:
            found.append({"text": text, "label": label})
    return found
