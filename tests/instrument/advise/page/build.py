"""A study's folder as a sweep leaves it: recorded runs with other rates, and what is said of how they ended."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from ....conftest import ROOT

RUN = ROOT / "tests" / "runs" / "healthy"
RATE = "training.learning_rate"
RATES = {0: 1e-4, 1: 1e-3, 2: 1e-2}
SHIFTS = {0: 0.3, 1: 0.0, 2: 0.6}
"""What is added to every evaluation of a trial."""


def trial(folder: Path, name: str, rate: float, shift: float) -> None:
    run = folder / "trials" / name
    shutil.copytree(RUN, run)
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    config["training"]["learning_rate"] = rate
    (run / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in rows:
        if "eval_loss" in row:
            row["eval_loss"] += shift
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def claim(folder: Path, name: str, **outcome: Any) -> None:
    path = folder / "claims" / name
    path.mkdir(parents=True)
    if outcome:
        (path / "outcome.json").write_text(json.dumps(outcome), encoding="utf-8")


def study(folder: Path) -> Path:
    """Three trials that ran through, the second of them at its second attempt; one refused; one under way."""
    for number, rate in RATES.items():
        name = "001.2" if number == 1 else f"{number:03}"
        trial(folder, name, rate, SHIFTS[number])
        claim(folder, name, ended="done", value=3.0, step=60, steps=120, seconds=5.0, settings={RATE: rate})
    trial(folder, "001", RATES[1], 9.0)
    claim(folder, "001")
    why = {"en": "</script><img src=x onerror=alert(1)>", "ko": "거절"}
    claim(folder, "003", ended="refused", value=None, step=None, settings={RATE: 1.0}, why=why)
    claim(folder, "004")
    roles = {"scientific": [], "nuisance": [RATE], "fixed": []}
    facts = {"sampler": "grid", "roles": roles, "metric": "eval_loss", "steps": 120, "rounds": []}
    (folder / "study.yaml").write_text(yaml.safe_dump(facts), encoding="utf-8")
    return folder
