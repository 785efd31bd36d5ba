"""The runs: a base and what is changed of it, as configurations of lora-train.

base      8 rows a step, half of the rows for evaluation, a console line every 200 steps
batch     8 x 8 rows a step          split   4:1          log   a line every 10 steps
one       1 x 8 rows a step, 64: 64 rows a step; both with a learning rate of 0, where the weights stand still
"""

from __future__ import annotations

import io
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import yaml
from lora_train.instrument.read.logs import read_history

CHANGED: dict[str, dict[str, dict[str, Any]]] = {
    "base": {},
    "batch": {"training": {"gradient_accumulation_steps": 8}},
    "split": {"data": {"eval_fraction": 0.2}},
    "log": {"training": {"logging_steps": 10}},
}
STILL: dict[str, dict[str, Any]] = {
    "one": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8, "max_steps": 60},
    "64": {"per_device_train_batch_size": 64, "max_steps": 30},
}
# Evaluations of a run.
EVALUATIONS = 10


@dataclass(frozen=True)
class Study:
    """Where it is, and what it is of.

    Attributes:
        folder: of the runs.
        model, data: a local model, and rows {"text", "label"}.
        rows: of the data, in training and evaluation together.
        epochs: of the half that the base trains on.
        seeds: of each setting.
        rate: the learning rate of those that move.
    """

    folder: Path
    model: str
    data: str
    rows: int
    epochs: int
    seeds: int
    rate: float = 1e-3

    def run(self, name: str, seed: int = 0) -> Path:
        """The folder of a run."""
        return self.folder / f"{name}-{seed}"

    @property
    def runs(self) -> list[tuple[str, int]]:
        """All of them, in the order in which they are trained."""
        return [(name, 0) for name in STILL] + [(name, seed) for seed in range(self.seeds) for name in CHANGED]

    def settings(self, name: str, seed: int) -> dict[str, Any]:
        """The configuration of a run."""
        in_training = self.rows // 2 if name != "split" else round(self.rows * 0.8)
        rows_a_step = 64 if name == "batch" else 8
        every = max(in_training * self.epochs // rows_a_step // EVALUATIONS, 1)
        training: dict[str, Any] = {
            "output_dir": str(self.run(name, seed)),
            "num_train_epochs": self.epochs,
            "per_device_train_batch_size": 8,
            "per_device_eval_batch_size": 64,
            "learning_rate": self.rate,
            "logging_steps": 200,
            "eval_strategy": "steps",
            "eval_steps": every,
            "save_strategy": "no",
            "seed": seed,
        }
        data: dict[str, Any] = {"train": self.data, "limit": self.rows, "cutoff_len": 64, "eval_fraction": 0.5}
        if name in STILL:
            training |= {"learning_rate": 0.0, "eval_strategy": "no", **STILL[name]}
        else:
            training |= CHANGED[name].get("training", {})
            data |= CHANGED[name].get("data", {})
        return {
            "model": {"name_or_path": self.model, "task": "seq_cls"},
            "lora": {"r": 8, "lora_alpha": 16, "target_modules": ["query", "value"]},
            "data": data,
            "training": training,
        }


def train(study: Study, workers: int) -> None:
    """Trains what is not there yet, so many at a time.

    Raises:
        SystemExit: a run failed; says what it said.
    """
    study.folder.mkdir(parents=True, exist_ok=True)
    missing = [run for run in study.runs if not is_complete(study.run(*run))]
    files = [write_config(study, *run) for run in missing]
    with ProcessPoolExecutor(workers, get_context("spawn"), _share_cores, (workers,)) as pool:
        for file, (code, said) in zip(files, pool.map(_train, files), strict=True):
            if code:
                sys.exit(f"{file.stem}: {said}")
            print(f"  {file.stem}: {summary(said)}", flush=True)


def is_complete(folder: Path) -> bool:
    """Whether a run has come to its end."""
    return (folder / "metrics.jsonl").exists() and read_history(folder).finished


def write_config(study: Study, name: str, seed: int) -> Path:
    """The configuration of a run as a file, for others to train it too."""
    file = study.folder / f"{name}-{seed}.yaml"
    file.write_text(yaml.safe_dump(study.settings(name, seed), sort_keys=False), encoding="utf-8")
    return file


def _share_cores(workers: int) -> None:
    import torch

    torch.set_num_threads(max((os.cpu_count() or 1) // workers, 1))


def _train(file: Path) -> tuple[int, str]:
    """`lora-train --config file` in this process: its exit code and what it said."""
    from lora_train.trainer.cli import main

    with redirect_stdout(io.StringIO()) as said, redirect_stderr(said):
        code = main(["--config", str(file)])
    return code, said.getvalue()


def summary(lines: str) -> str:
    """What the run said of its end."""
    wanted = [line for line in lines.splitlines() if line.startswith("done")]
    return wanted[-1].removeprefix("done").strip() if wanted else ""
