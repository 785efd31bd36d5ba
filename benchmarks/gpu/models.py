"""Random models from configs, a tokenizer made from the examples, and configurations of runs on them."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .context import ROOT
from .device import DEVICE

DATA = ROOT / "examples" / "data" / "koalpaca_mini.jsonl"
EVAL_DATA = ROOT / "examples" / "data" / "koalpaca_mini_eval.jsonl"
VOCABULARY = 512

Settings = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Size:
    """Of a model; the inner width is four times the hidden one."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int


SMALL = Size(256, 4, 8, 2, 1024)
TINY = Size(64, 2, 4, 2, 192)
WIDE = Size(4096, 4, 32, 8, 14336)
"""Four layers of LLaMA-8B."""

FAMILIES = ("llama", "gpt_neox")
TRAINED = ("fp16", "bf16", "nf4")
# what a run computes in -> its settings
PRECISIONS: dict[str, Settings] = {
    "fp32": {},
    "fp16": {"training": {"fp16": True}},
    "bf16": {"training": {"bf16": True}},
    "nf4": {
        "training": {"fp16": True, "gradient_checkpointing": True},
        "quantization": {"load_in_4bit": True, "bnb_4bit_use_double_quant": True},
    },
}


def model_folder(work: Path, family: str, size: Size, dtype: str = "float32") -> Path:
    """The folder of a random model under `work`, which all parts share; written when it is first asked for."""
    folder = work / f"{family}-{size.hidden}-{dtype}"
    if not folder.exists():
        fresh = folder.with_name(f"{folder.name}.{os.getpid()}")
        write_model(fresh, family, size, dtype)
        with contextlib.suppress(OSError):  # another process was faster
            fresh.rename(folder)
    return folder


def write_model(folder: Path, family: str, size: Size, dtype: str) -> None:
    """Writes a random model and a byte-level BPE tokenizer of the examples."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig, PreTrainedTokenizerFast
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    bpe = ByteLevelBPETokenizer()
    bpe.train([str(DATA)], vocab_size=VOCABULARY, special_tokens=["<|endoftext|>"], show_progress=False)
    PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<|endoftext|>").save_pretrained(folder)
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": size.hidden,
        "intermediate_size": size.intermediate,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "max_position_embeddings": 2048,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    config = GPTNeoXConfig(**sizes) if family == "gpt_neox" else LlamaConfig(**sizes, num_key_value_heads=size.kv_heads)
    torch.manual_seed(0)
    with torch.device(DEVICE):
        model = AutoModelForCausalLM.from_config(config)
    model.to(getattr(torch, dtype)).save_pretrained(folder)


def settings(folder: Path, out: Path, precision: str, /, **sections: Mapping[str, Any]) -> Settings:
    """A run's configuration: LoRA on all linears of a model, rows of the examples."""
    found: Settings = {
        "model": {"name_or_path": str(folder)},
        "lora": {"r": 8, "lora_alpha": 16, "lora_dropout": 0.05},
        "data": {"train": str(DATA), "eval": str(EVAL_DATA), "cutoff_len": 128, "format": "koalpaca"},
        "training": {"output_dir": str(out), "per_device_train_batch_size": 4, "learning_rate": 5e-3},
    }
    for section, values in (*PRECISIONS[precision].items(), *sections.items()):
        found.setdefault(section, {}).update(values)
    return found


def write_settings(path: Path, values: Settings) -> Path:
    """Writes a configuration file; JSON is YAML."""
    path.write_text(json.dumps(values, indent=1), encoding="utf-8")
    return path


def components_of(values: Settings) -> Any:
    """Everything a step of such a run needs, built in this process."""
    from lora_train.trainer.config.schema import Config
    from lora_train.trainer.console import Console
    from lora_train.trainer.data.load import load_data, with_format
    from lora_train.trainer.loop.components import build
    from lora_train.trainer.loop.engine import Engine
    from lora_train.trainer.model.load import load_tokenizer, pad_token_id

    config, console = Config.model_validate(values), Console(silent=True)
    tokenizer = load_tokenizer(config)
    train_data, eval_data = load_data(config, tokenizer, console)
    config = with_format(config, train_data)
    return build(config, Engine(), train_data, eval_data, pad_token_id(tokenizer), console)
