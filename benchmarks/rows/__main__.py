"""Trains, measures one part and prints it; exit code 1 if a point is below its bar."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from lora_train.instrument.judge.row_score import with_score

from ..faults.__main__ import versions
from .plant import KINDS, plant

BARS = {("garbled", "score"): 0.90, ("language", "score"): 0.90, ("copy", "score"): 0.90, ("swapped", "probed"): 0.95}
RANKINGS = ("score", "probed", "loss", "gradient")
MODEL = "models/SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> int:
    parser = argparse.ArgumentParser("benchmarks.rows", description=__doc__)
    parser.add_argument("--part", choices=("planted", "without", "prediction"), default="planted")
    parser.add_argument("--seeds", type=int, help="default: 3, and 30 for --part prediction")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--each", type=int, default=20, help="planted rows of each kind")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="leave runs and lists there, and take what it has")
    arguments = parser.parse_args()
    n = arguments.seeds or (30 if arguments.part == "prediction" else 3)
    seeds = range(arguments.first, arguments.first + n)
    started = time.perf_counter()
    kept = planted(seeds, arguments) if arguments.part == "planted" else from_inside(arguments.part, seeds)
    print(f"{versions()}; seeds {seeds[0]} to {seeds[-1]}, {time.perf_counter() - started:.0f} s")
    return 0 if kept else 1


def planted(seeds: Sequence[int], arguments: argparse.Namespace) -> bool:
    """Which planted rows are found; whether every ranking reaches its bar."""
    found: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for seed in seeds:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) if arguments.keep is None else arguments.keep / f"{seed}"
            folder.mkdir(parents=True, exist_ok=True)
            kinds = plant(folder, seed, arguments.rows, arguments.each)
            for row, values in ranked(folder, arguments.model, seed).items():
                found.setdefault(kinds.get(row, ""), []).append((f"{seed}-{row}", values))
        print(f"seed {seed} is done", file=sys.stderr, flush=True)
    return not table({kind: [values for _, values in rows] for kind, rows in found.items()})


def from_inside(part: str, seeds: Sequence[int]) -> bool:
    """The parts that look into runs of a tiny model; whether every point reaches its bar."""
    os.environ |= {"LORA_TRAIN_LANG": "en", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    warnings.simplefilter("ignore")
    import torch

    from . import prediction, without

    torch.set_num_threads(1)
    found = []
    with tempfile.TemporaryDirectory(prefix="rows-") as folder:
        for seed in seeds:
            own = Path(folder) / f"case-{seed}"
            found.append(without.measured(own, seed) if part == "without" else prediction.case(own, seed))
            print(f"seed {seed} is done", file=sys.stderr, flush=True)
    if part == "without":
        return without.report(np.concatenate(found))
    return prediction.report(np.array(found))


def ranked(folder: Path, model: str, seed: int) -> dict[int, dict[str, Any]]:
    """What each ranking gives a row of a run on the folder's rows."""
    config = {
        "model": {"name_or_path": model},
        "data": {"train": str(folder / "rows.jsonl"), "format": "alpaca", "cutoff_len": 128},
        "training": {"output_dir": str(folder / "run"), "num_train_epochs": 1, "per_device_train_batch_size": 8,
                     "learning_rate": 2e-4, "seed": seed, "save_strategy": "no"},
        "instrument": {"rows_every": 0, "histogram_every": 0, "probe_every": 0},
    }  # fmt: skip
    own = json.dumps({"config": config, "rows": hashlib.sha256((folder / "rows.jsonl").read_bytes()).hexdigest()})
    if (folder / "made_of.json").is_file() and (folder / "made_of.json").read_text("utf-8") != own:
        raise SystemExit(f"error: {folder} holds a run of other rows or settings\nhint: another folder for --keep")
    (folder / "made_of.json").write_text(own, encoding="utf-8")
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [sys.executable, "-c", "import sys; from lora_train.trainer.cli import main; sys.exit(main())"]
    if not (folder / "run" / "adapter").is_dir():
        subprocess.run([*command, "--config", str(folder / "config.yaml")], check=True, stdout=subprocess.DEVNULL)
    for name, more in (("plain", []), ("probed", ["--probe"])):
        if not (folder / f"{name}.csv").is_file():
            listed = subprocess.run([*command, "rows", str(folder / "run"), "--csv", *more], check=True,
                                    capture_output=True, text=True)  # fmt: skip
            (folder / f"{name}.csv").write_text(listed.stdout, encoding="utf-8")
    # the parts are the run's; what a score makes of them is this code's
    plain, probed = (with_score(pd.read_csv(folder / f"{name}.csv")).set_index("row") for name in ("plain", "probed"))
    return {
        int(row): {"score": values["score"], "probed": probed.at[row, "score"], "loss": values["loss_z"],
              "gradient": values["grad_z"], "excess": values["grad_excess_z"], "probe": probed.at[row, "probe_z"],
              "plain_kind": values["kind"], "probed_kind": probed.at[row, "kind"]}
        for row, values in zip(plain.index, plain.to_dict("records"), strict=True)
    }  # fmt: skip


def auroc(planted: np.ndarray, others: np.ndarray) -> float:
    """The chance that a planted row is above another; ties count half."""
    others = np.sort(others)
    below, upto = np.searchsorted(others, planted, "left"), np.searchsorted(others, planted, "right")
    return float(((below + upto) / 2 / len(others)).mean())


def interval(planted: np.ndarray, others: np.ndarray) -> tuple[float, float]:
    """95%, by drawing rows again with replacement."""
    draw = np.random.default_rng(0)
    found = [auroc(draw.choice(planted, len(planted)), draw.choice(others, len(others))) for _ in range(500)]
    return float(np.quantile(found, 0.025)), float(np.quantile(found, 0.975))


def table(found: dict[str, list[dict[str, Any]]]) -> bool:
    """Prints the areas; whether one that has a bar is below it."""
    others = found.pop("", [])
    rankings = (*RANKINGS, "excess", "probe")
    print(f"{'planted':<10} {'rows':>5}  " + "  ".join(f"{name:<20}" for name in rankings))
    short = False
    for kind in KINDS:
        cells = []
        for ranking in rankings:
            planted = np.array([values[ranking] for values in found.get(kind, [])])
            rest = np.array([values[ranking] for values in others])
            planted, rest = (np.nan_to_num(own, nan=-99.0) for own in (planted, rest))
            area, (low, high) = auroc(planted, rest), interval(planted, rest)
            bar = BARS.get((kind, ranking))
            below = bar is not None and area < bar
            short |= below
            cells.append(f"{area:.3f} ({low:.2f} to {high:.2f})" + ("!" if below else ""))
        print(f"{kind:<10} {len(found.get(kind, [])):>5}  " + "  ".join(f"{cell:<20}" for cell in cells))
    for name in ("plain", "probed"):
        n = sum(values[f"{name}_kind"] != "" for values in others)
        print(f"{name}: {n} of {len(others)} rows that were left alone stand out")
    for kind in KINDS:
        by = {
            name: auroc(*(np.array([v[name] for v in own]) for own in (found[kind], others))) for name in RANKINGS[2:]
        }
        if by["gradient"] <= by["loss"]:
            print(f"{kind}: the gradient norm alone finds no more of them than the loss alone")
    return short


if __name__ == "__main__":
    sys.exit(main())
