"""Tiny models, and a run's configuration for a case."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from lora_train.trainer.config.schema import Config, DataSection
from lora_train.trainer.data.batches import Plan
from lora_train.trainer.data.examples import IGNORE_INDEX, load_examples
from lora_train.trainer.loop.components import order_of
from lora_train.trainer.model.load import load_tokenizer
from transformers import AutoTokenizer

from .draw import Case

DATA = Path(__file__).resolve().parents[2] / "examples" / "data" / "koalpaca_mini.jsonl"
VOCABULARY = 512
# These bring the loss from 6.25 to about 2.
N_STEPS, ROWS, LENGTH, LEARNING_RATE = 150, 16, 64, 5e-3
MAX_LOSS = 3.0


def make_tokenizer(folder: Path) -> None:
    """Writes a byte-level BPE tokenizer of the data."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train([str(DATA)], vocab_size=VOCABULARY, special_tokens=["<|endoftext|>"], show_progress=False)
    PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<|endoftext|>").save_pretrained(folder)


def make_model(folder: Path, arch: str, layers: int, seed: int) -> Path:
    """Trains a model from scratch for a few seconds; a random one is too unsure of itself to diverge.

    Args:
        folder: it is written to <folder>/<arch>-<layers>, in float32, with the tokenizer from <folder>/tokenizer.
    """
    import torch
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.set_num_threads(1)
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    torch.manual_seed(seed)
    if arch == "gpt_neox":
        model = GPTNeoXForCausalLM(GPTNeoXConfig(**sizes))
    else:
        model = LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=2))
    tokenizer = shutil.copytree(folder / "tokenizer", folder / f"{arch}-{layers}")
    section = DataSection(train=str(DATA), format="koalpaca", cutoff_len=LENGTH)
    examples = load_examples(str(DATA), section, AutoTokenizer.from_pretrained(tokenizer)).examples
    rows = torch.full((len(examples), LENGTH), IGNORE_INDEX)
    for row, example in zip(rows, examples, strict=True):
        row[: len(example.input_ids)] = torch.from_numpy(example.input_ids)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    loss = torch.tensor(torch.inf)
    for _ in range(N_STEPS):
        batch = rows[torch.randint(len(rows), (ROWS,))]
        loss = model(input_ids=batch.clamp(min=0), labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert loss < MAX_LOSS, f"{arch} with {layers} layers has learned too little: {loss.item()}"
    model.save_pretrained(folder / f"{arch}-{layers}")
    return folder / f"{arch}-{layers}"


def make_config(case: Case, models: Path, output_dir: Path, on_collapse: str) -> Config:
    """The configuration of a case's run."""
    sections = case.sections
    storage, _, compute = case.precision.rpartition("+")
    values = {
        "model": {"name_or_path": str(models / f"{case.arch}-{case.layers}"), **sections["model"]},
        "quantization": {"load_in_4bit": storage == "nf4"},
        "lora": sections["lora"],
        "data": {"train": str(DATA), "format": "koalpaca", **sections["data"]},
        "training": {
            "output_dir": str(output_dir),
            "max_steps": case.n_steps,
            "seed": case.seed,
            "logging_steps": 4,
            "save_steps": 5,
            "fp16": compute == "fp16",
            "bf16": compute == "bf16",
            **sections["training"],
        },
        "precision": {"on_collapse": on_collapse, **sections["precision"]},
    }
    return Config.model_validate(values)


def plan_of(config: Config) -> Plan:
    """The order of the rows that the run will have."""
    return order_of(config, load_examples(config.data.train, config.data, load_tokenizer(config)), world_size=1)
