"""Runs the contenders as a user would, each in a process, and brings what they did into one shape."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_train.instrument.read.store import read_metrics
from lora_train.trainer.run.folder import family

from .model import ROOT, from_root

# One thread: bit for bit the same run each time. English, because the output is read for the table.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "LORA_TRAIN_LANG": "en", "HF_HUB_OFFLINE": "1"}


@dataclass
class Contender:
    """What one run did.

    Attributes:
        logged: per step loss, grad_norm and learning_rate as logged; not finite or not there as None.
        losses: the true loss per step.
        collapse_step: the first step whose loss was not finite; for ours the step of the incident.
        weights: (values that are not finite, values) of the adapter left behind; None if there is none.
        unchanged: for the stock side, whether the adapter is the one that met the collapse, bit for bit.
        loss_scale: at the end.
        exit_code: of the process.
        said: what it printed about the collapse, by line.
        lines: step -> line of its log.
    """

    name: str
    logged: list[dict[str, float | None]] = field(default_factory=list)
    losses: list[float | None] = field(default_factory=list)
    collapse_step: int | None = None
    weights: tuple[int, int] | None = None
    unchanged: bool | None = None
    loss_scale: float | None = None
    exit_code: int = 0
    said: list[str] = field(default_factory=list)
    lines: dict[int, str] = field(default_factory=dict)
    diagnosis: dict[str, Any] | None = None
    run_dir: str | None = None

    @property
    def last_healthy(self) -> int:
        """The last step with a finite loss."""
        return max((step for step, loss in enumerate(self.losses, start=1) if loss is not None), default=0)

    @property
    def skipped(self) -> int:
        """Steps whose gradients were not finite."""
        return sum(entry["grad_norm"] is None for entry in self.logged)

    def tail(self, key: str) -> list[float | None]:
        """What was logged after the last finite loss; after the collapse, where the last loss is finite."""
        start = self.last_healthy
        if start == len(self.losses):
            start = (self.collapse_step or start + 1) - 1
        return [entry.get(key) for entry in self.logged[start:]]

    def lr_moves(self) -> bool | None:
        """Whether the learning rate changes in the end; None if too little was logged."""
        rates = self.tail("learning_rate")
        return len(set(rates)) > 1 if len(rates) > 1 else None


def first_bad(losses: list[float | None]) -> int | None:
    """The first step whose loss is not finite."""
    return next((step for step, loss in enumerate(losses, start=1) if loss is None), None)


def run_stock(config: Path, out: Path) -> tuple[list[Contender], list[list[int]]]:
    """Trains the stock rows, one after the other in one process.

    Returns:
        the contenders, and the rows of the data that each step saw.
    """
    command = [sys.executable, "-m", "benchmarks.collapse.stock", str(config), str(out)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    (out / "stock.log").write_text(done.stdout + done.stderr, encoding="utf-8")
    if done.returncode:
        sys.exit(f"error: the stock side failed; {out / 'stock.log'} ends with\n{done.stderr[-2000:]}")
    written = json.loads((out / "stock.json").read_text(encoding="utf-8"))
    logs = re.split(r"^== \d+\n", done.stdout, flags=re.M)[1:]
    contenders = []
    for outcome, text in zip(written["rows"], logs, strict=True):
        lines = [line for line in text.splitlines() if line.startswith("{'loss'")]
        contenders.append(
            Contender(
                name=outcome["name"],
                logged=outcome["log"],
                losses=outcome["losses"],
                collapse_step=first_bad(outcome["losses"]),
                weights=(outcome["n_nonfinite"], outcome["n_values"]),
                unchanged=outcome["unchanged"],
                loss_scale=outcome["loss_scale"],
                lines=dict(enumerate(lines, start=1)),
            )
        )
    return contenders, written["batches"]


def run_ours(config: Path, out: Path, policy: str) -> Contender:
    """Trains with the real command line under one policy."""
    output_dir = str(out / policy)
    before = set(family(output_dir))
    command = [str(Path(sys.executable).with_name("lora-train")), "--config", from_root(config)]
    command += [f"precision.on_collapse={policy}", f"training.output_dir={from_root(out / policy)}"]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    (out / f"{policy}.log").write_text(done.stdout + done.stderr, encoding="utf-8")
    contender = Contender(name=f"lora-train, on_collapse={policy}", exit_code=done.returncode)
    contender.lines, contender.said = read_console(done.stdout)
    if done.returncode not in (0, 3):
        contender.said = done.stderr.strip().splitlines()[-3:]
    made = [run for run in family(output_dir) if run not in before]
    if made:
        read_run(contender, made[-1])
    return contender


def read_console(text: str) -> tuple[dict[int, str], list[str]]:
    """Our log: step -> its line, and what was said between the steps about the collapse."""
    lines, said = {}, []
    for line in text.splitlines():
        if match := re.match(r"step +(\d+)/", line):
            lines[int(match[1])] = line
        elif lines and not line.startswith(("done", "adapter")):
            said.append(line)
    return lines, said


def read_run(contender: Contender, run: Path) -> None:
    """Fills in what the run folder holds; of a step that ran twice the last counts."""
    steps = {row["step"]: row for row in read_metrics(run) if "loss" in row}
    contender.run_dir = str(run)
    contender.logged = [{key: row[key] for key in ("loss", "grad_norm", "learning_rate")} for row in steps.values()]
    contender.losses = [row["loss"] for row in steps.values()]
    if steps:
        contender.loss_scale = list(steps.values())[-1]["loss_scale"]
    incidents = sorted(run.glob("incidents/*/diagnosis.json"), key=lambda path: path.stat().st_mtime)
    if incidents:
        contender.diagnosis = json.loads(incidents[0].read_text(encoding="utf-8"))
        contender.collapse_step = int(contender.diagnosis["step"])  # pyright: ignore[reportOptionalSubscript]
    checkpoints = sorted(run.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    for folder in (run / "adapter", *reversed(checkpoints)):
        if (folder / "adapter_model.safetensors").exists():
            contender.weights = count_nonfinite(folder / "adapter_model.safetensors")
            return


def count_nonfinite(path: Path) -> tuple[int, int]:
    """Values of an adapter that are not finite, and all."""
    import torch
    from safetensors.torch import load_file

    tensors = load_file(path).values()
    return sum(int((~torch.isfinite(t)).sum()) for t in tensors), sum(t.numel() for t in tensors)
