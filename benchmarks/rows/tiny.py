"""Runs of a model of 164,160 weights on real rows, looked at from inside while they go on.

The model (benchmarks/faults/models.py) has learned from scratch, on Korean; its rows here are English, as plant.py has
them: a direction that rows share is there to be found.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import yaml
from lora_train.trainer.checks.read_config import read_config
from lora_train.trainer.data.batches import StepRows
from lora_train.trainer.data.examples import Example
from lora_train.trainer.loop import train as loop
from lora_train.trainer.loop.components import Components
from lora_train.trainer.run.start import run

from ..faults.models import make_model, make_tokenizer

LAYERS, LENGTH = 2, 192
Look = Callable[[Components, StepRows], None]


def model_of(folder: Path, seed: int) -> Path:
    """The model of a seed in the folder, made where it is not there."""
    if not (folder / "tokenizer").is_dir():
        make_tokenizer(folder / "tokenizer")
    path = folder / f"seed-{seed}" / f"llama-{LAYERS}"
    if not path.is_dir():
        (folder / f"seed-{seed}").mkdir()
        (folder / f"seed-{seed}" / "tokenizer").symlink_to(folder / "tokenizer")
        make_model(folder / f"seed-{seed}", "llama", LAYERS, seed)
    return path


def trained(folder: Path, model: Path, rows: int, steps: int, seed: int, look: Look, **instrument: Any) -> Path:
    """A run on the folder's rows.jsonl with so many rows a step, without dropout.

    Args:
        look: told of every step before it is run, when the weights are those that it will see.

    Returns:
        its folder.
    """
    config = {
        "model": {"name_or_path": str(model)},
        "lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": "all-linear"},
        "data": {"train": str(folder / "rows.jsonl"), "format": "koalpaca", "cutoff_len": LENGTH},
        "training": {"output_dir": str(folder / "run"), "max_steps": steps, "per_device_train_batch_size": rows,
                     "learning_rate": 1e-3, "seed": seed, "save_strategy": "no"},
        "instrument": {"histogram_every": 0, "probe_every": 0, **instrument},
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    real = loop.train_step

    def train_step(components: Components, own: StepRows) -> torch.Tensor:
        look(components, own)
        return real(components, own)

    said = io.StringIO()
    with mock.patch.object(loop, "train_step", train_step), contextlib.redirect_stdout(said):
        code = run(read_config(folder / "config.yaml", []), None)
    assert code == 0, said.getvalue()
    return folder / "run"


def squared_norm(components: Components, examples: Sequence[Example]) -> float:
    """|g|^2 of a step of these rows in one micro-batch at the weights of now, which stay; nothing is recorded."""
    own = replace(components, recorder=None)
    loop.accumulate(own, StepRows(0, [[list(examples)]]))
    scale = float(components.loss_scale.scale)
    square = sum(float(gradient.double().square().sum()) for gradient in own.optimizer.gradients) / scale**2
    own.optimizer.clear()
    return square
