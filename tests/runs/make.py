"""Makes the recorded runs in this folder again: real runs of tiny models, without weights.

    python -m tests.runs.make                  all, about four minutes on two cores
    python -m tests.runs.make lengths          one
    python -m tests.runs.make --words          only what explain says of them

    healthy      LLaMA in fp32, evaluated, its loss still falling
    healed       GPT-NeoX in float16 that overflows in training and goes on (benchmarks/collapse)
    overfitting  16 rows, many epochs
    lengths      rows longer and longer: so is the memory
    stock        trainer_state.json of the stock Trainer on the model of `healed`
    v0_1_0       not made again: version 0.1.0 left it, run by `python -m tests.runs.earlier` at 5a8e8d2

Paths are those of the folder they were made in, and env.json leaves out what names a machine. What explain says of
them is in explain.en.txt and explain.ko.txt beside each; after a change, read them before committing them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
DATA = ROOT / "examples" / "data" / "koalpaca_mini.jsonl"
KEPT = ("config.yaml", "env.json", "sites.json", "metrics.jsonl", "stats", "incidents", "evaluations")
OF_A_MACHINE = ("command", "platform", "started")


def settings(model: str, output_dir: str, **sections: dict[str, Any]) -> dict[str, Any]:
    """A configuration; `sections` win."""
    base: dict[str, dict[str, Any]] = {
        "model": {"name_or_path": model},
        "lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": "all-linear"},
        "data": {"train": "data.jsonl", "format": "koalpaca", "cutoff_len": 96},
        "training": {"output_dir": output_dir, "per_device_train_batch_size": 4, "save_strategy": "no"},
        "instrument": {"histogram_every": 20, "probe_every": 20},
    }
    return {name: {**base.get(name, {}), **sections.get(name, {})} for name in {**base, **sections}}


# On a GPU the allocator keeps the most that a batch needed; so does malloc when it is told never to give back.
KEEPS_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_MMAP_MAX_": "0"}


def train(work: Path, config: dict[str, Any], **environment: str) -> Path:
    """Runs lora-train in the folder and returns the run's."""
    (work / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [str(Path(sys.executable).with_name("lora-train")), "--config", "config.yaml"]
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "LORA_TRAIN_LANG": "en"}
    subprocess.run(command, cwd=work, env={**os.environ, **quiet, **environment}, check=True)
    return work / config["training"]["output_dir"]


def keep(work: Path, run: Path, name: str) -> None:
    """Copies what the tests read of a run, with paths as seen from the folder it was made in."""
    target = HERE / name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for part in KEPT:
        source = run / part
        if source.is_dir():
            shutil.copytree(source, target / part, ignore=shutil.ignore_patterns("*.safetensors", "capsule.json"))
        elif source.exists():
            shutil.copy(source, target / part)
    for file in (target / "config.yaml", target / "env.json"):
        file.write_text(file.read_text(encoding="utf-8").replace(f"{work}/", ""), encoding="utf-8")
    env = json.loads((target / "env.json").read_text(encoding="utf-8"))
    clean = {key: value for key, value in env.items() if key not in OF_A_MACHINE}
    (target / "env.json").write_text(json.dumps(clean, indent=1) + "\n", encoding="utf-8")


def make_tiny_models(work: Path) -> None:
    """A pretrained tiny LLaMA, and a wide one with random weights whose activations fill memory."""
    from benchmarks.faults.models import make_model, make_tokenizer

    make_tokenizer(work / "tokenizer")
    make_model(work, "llama", 2, seed=1)
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shutil.copytree(work / "tokenizer", work / "wide")
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 512,
        "hidden_size": 512,
        "intermediate_size": 2048,
        "max_position_embeddings": 4096,
    }
    config = LlamaConfig(**sizes, num_hidden_layers=2, num_attention_heads=8, bos_token_id=0, eos_token_id=0)
    LlamaForCausalLM(config).save_pretrained(work / "wide")


def growing_rows(path: Path) -> None:
    """Fifty short rows, and ten from twice as long to twenty times."""
    rows = [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()]
    text = " ".join(row["output"] for row in rows)
    lengths = [100 + 2 * at for at in range(50)] + [200 * (at + 1) for at in range(10)]
    with path.open("w", encoding="utf-8") as file:
        for length in lengths:
            row = {"instruction": "이어서 쓰세요.", "output": text[:length]}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


OFTEN = {"eval_strategy": "steps", "eval_steps": 10, "logging_steps": 5}


def healthy(work: Path) -> None:
    """Learns what it was not pretrained on."""
    training = {"max_steps": 150, "learning_rate": 8e-3, "warmup_steps": 8, **OFTEN}
    adapter = {"r": 16, "lora_alpha": 32}
    data = {"eval_fraction": 0.2}
    keep(work, train(work, settings("llama-2", "healthy", data=data, training=training, lora=adapter)), "healthy")


def overfitting(work: Path) -> None:
    """Twenty rows, twenty-four times."""
    training = {"max_steps": 120, "learning_rate": 1e-2, "lr_scheduler_type": "constant", **OFTEN}
    data = {"limit": 20, "eval": "data.jsonl", "eval_limit": 40}
    keep(work, train(work, settings("llama-2", "overfitting", data=data, training=training)), "overfitting")


def lengths(work: Path) -> None:
    """Longer and longer rows in a process that keeps its memory."""
    growing_rows(work / "growing.jsonl")
    data = {"train": "growing.jsonl", "cutoff_len": 2048}
    training = {"max_steps": 60, "per_device_train_batch_size": 1, "learning_rate": 1e-4}
    keep(work, train(work, settings("wide", "lengths", data=data, training=training), **KEEPS_MEMORY), "lengths")


def collapse(work: Path) -> None:
    """`healed` and `stock`."""
    command = [sys.executable, "-m", "benchmarks.collapse", "--out", str(work / "collapse")]
    subprocess.run(command, cwd=ROOT, check=True)
    keep(work, work / "collapse" / "heal", "healed")
    (HERE / "stock").mkdir(exist_ok=True)
    shutil.copy(work / "collapse" / "stock-1" / "trainer_state.json", HERE / "stock" / "trainer_state.json")


MAKERS = (healthy, overfitting, lengths, collapse)


def main(names: list[str]) -> None:
    """Makes those that are named, or all."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        shutil.copy(DATA, work / "data.jsonl")
        make_tiny_models(work)
        for maker in MAKERS:
            if not names or maker.__name__ in names:
                maker(work)
    write_explanations()


def write_explanations() -> None:
    """What explain says of each, in both languages."""
    from lora_train.instrument.judge.explain import explain, lines, read_history

    os.chdir(HERE)
    kept = [path.name for path in HERE.iterdir() if path.is_dir() and path.name not in ("__pycache__", "v0_1_0")]
    for run in sorted(kept):
        for lang in ("en", "ko"):
            history = read_history(run)
            text = "\n".join(lines(history, explain(history), lang)) + "\n"
            (HERE / run / f"explain.{lang}.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] == ["--words"]:
        write_explanations()
    else:
        main(sys.argv[1:])
