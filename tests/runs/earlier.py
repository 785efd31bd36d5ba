"""The model, rows and configuration behind v0_1_0/, the run folders that version 0.1.0 left.

    python -m tests.runs.earlier WORK          at the commit of 0.1.0: runs both under WORK

    healthy      float32, 8 steps, evaluated, checkpoint-4
    collapsed    float16 that overflows in an MLP at step 6, precision.on_collapse=stop: checkpoint-5 and an incident

Weights are integers / 1024 from a generator that numpy keeps as it is (RandomState), and the tokenizer has one token
for each byte: both are the same to the last bit with every version of every library. Kept of a run is what going on
and replaying need, without what names a machine; the last checkpoint of `healthy` and its adapter are left out, as if
it had been killed.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

RECORDED = Path(__file__).resolve().parent / "v0_1_0"
OF_A_MACHINE = ("command", "platform", "started")
MODEL_HASH = "c9c7308d6736f5b4"
"""Of the weights; replaying on others would prove nothing."""
N_ROWS, LOUD_ROW = 16, 9
OVERFLOWS = "~"
"""A character of one row; its embedding makes gate * up overflow float16."""


def write_model(folder: Path) -> str:
    """Writes model and tokenizer; returns a hash of the weights."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<|endoftext|>": 0} | {letter: i for i, letter in enumerate(alphabet, start=1)}
    bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>").save_pretrained(folder)
    sizes: dict[str, Any] = {
        "vocab_size": 264, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 128,
        "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(**sizes))
    numbers = np.random.RandomState(0)
    digest = hashlib.sha256()
    with torch.no_grad():
        for _name, weight in sorted(model.named_parameters()):
            if weight.ndim > 1:
                weight.copy_(torch.from_numpy(numbers.randint(-256, 257, weight.shape) / 1024))
        base: Any = model.model
        base.embed_tokens.weight[:, 3] = 0.0
        base.embed_tokens.weight[vocabulary[OVERFLOWS], 3] = 8.0
        for layer in base.layers:  # dimension 3 stays what the embedding says
            layer.self_attn.o_proj.weight[3] = layer.mlp.down_proj.weight[3] = 0.0
        base.layers[1].mlp.up_proj.weight[0, 3] = base.layers[1].mlp.gate_proj.weight[0, 3] = 96.0
        for _name, weight in sorted(model.named_parameters()):
            digest.update(weight.numpy().tobytes())
    model.save_pretrained(folder)
    return digest.hexdigest()[:16]


def write_rows(folder: Path) -> None:
    """Sixteen rows of text, one of them with the character that overflows; and four without, to evaluate on."""
    texts = [" ".join(f"{number * (row + 3) % 97}" for number in range(6 + row % 5)) for row in range(N_ROWS)]
    loud = [text + (OVERFLOWS if row == LOUD_ROW else ".") for row, text in enumerate(texts)]
    for file, lines in (("rows.jsonl", loud), ("quiet.jsonl", texts[:4])):
        (folder / file).write_text("".join(json.dumps({"text": text}) + "\n" for text in lines), encoding="utf-8")


def settings(name: str) -> dict[str, dict[str, Any]]:
    """The configuration of a run, to be run in the folder that holds `model` and `rows.jsonl`."""
    fp16 = name == "collapsed"
    return {
        "model": {"name_or_path": "./model"},
        "lora": {"r": 2, "lora_alpha": 4, "lora_dropout": 0.1, "target_modules": "all-linear"},
        "data": {"train": "rows.jsonl", "eval": "quiet.jsonl", "format": "text", "cutoff_len": 40},
        "training": {
            "output_dir": name, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "max_steps": 8,
            "learning_rate": 1e-3, "save_steps": 4, "fp16": fp16, "eval_strategy": "steps", "eval_steps": 4,
        },
        "precision": {"on_collapse": "stop"},
        "instrument": {"histogram_every": 3, "probe_every": 3},
    }  # fmt: skip


def prepare(work: Path) -> None:
    """Model, rows and configurations in a folder.

    Raises:
        AssertionError: the weights are not those of the recorded runs.
    """
    found = write_model(work / "model")
    assert found == MODEL_HASH, f"the model of v0_1_0 has other weights: {found}"
    write_rows(work)
    for name in ("healthy", "collapsed"):
        (work / f"{name}.json").write_text(json.dumps(settings(name)), encoding="utf-8")  # JSON is YAML


def main(work: Path) -> None:
    """Runs both, and keeps what the tests read."""
    import os
    import shutil

    from lora_train.trainer.cli import main as lora_train

    work.mkdir(parents=True, exist_ok=True)
    prepare(work)
    os.chdir(work)
    for name, left_out in (("healthy", ("checkpoint-8", "adapter", ".lock")), ("collapsed", ("checkpoint-4", ".lock"))):
        lora_train(["--config", f"{name}.json"])
        shutil.rmtree(RECORDED / name, ignore_errors=True)
        shutil.copytree(work / name, RECORDED / name, ignore=shutil.ignore_patterns(*left_out))
        file = RECORDED / name / "env.json"
        env = {key: value for key, value in json.loads(file.read_text()).items() if key not in OF_A_MACHINE}
        file.write_text(json.dumps(env, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
