"""The planted collapse of benchmarks/collapse on the device at hand, as users meet it.

lora-train with on_collapse=stop names the module and exits 3; with heal it finishes; `replay` of the step that
collapsed and of a healthy one gives the recorded loss; the stock Trainer prints loss 0 and grad_norm nan and exits 0.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from ...collapse.model import MODULE, write_work
from ..context import ROOT, Context
from .runs import CLI

STOCK_ROW = "3"
"""Fused AdamW under a loss scaler."""
STEPS, DRY_STEPS = 60, 24
"""The collapse comes about step 13."""
EXIT_COLLAPSED = 3
HEALTHY_STEP = 3


def run(context: Context) -> str:
    """Three runs side by side, then two replays."""
    out = context.folder
    config = write_work(out, seed=0)
    values = yaml.safe_load(config.read_text(encoding="utf-8"))
    values["training"] |= {"max_steps": DRY_STEPS if context.dry else STEPS, "lr_scheduler_type": "constant"}
    config.write_text(yaml.safe_dump(values), encoding="utf-8")
    commands = {
        "stop": ours(config, out / "stop", "stop"),
        "heal": ours(config, out / "heal", "heal"),
        "stock": [sys.executable, "-m", "benchmarks.collapse.stock", str(config), str(out), STOCK_ROW],
    }
    with ThreadPoolExecutor(2 if context.dry else 3) as pool:
        done = dict(zip(commands, pool.map(lambda words: said(context, words), commands.values()), strict=True))
    step = stopped(context, out / "stop", *done["stop"])
    healed(context, out / "heal", *done["heal"], n_steps=values["training"]["max_steps"])
    stock(context, out, *done["stock"])
    if step:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda number: replayed(context, out / "stop", number), (HEALTHY_STEP, step)))
    return f"collapse at step {step}, stopped, healed and replayed; the stock Trainer went on"


def ours(config: Path, folder: Path, policy: str) -> list[str]:
    """lora-train under a policy; a checkpoint before the healthy step that is replayed."""
    return [*CLI, "--config", str(config), f"precision.on_collapse={policy}", f"training.output_dir={folder}",
            f"training.save_steps={HEALTHY_STEP - 1}"]  # fmt: skip


def said(context: Context, words: list[str]) -> tuple[int | None, str]:
    """Exit code, None if the time was up, and output of a command."""
    process = subprocess.Popen(
        words, cwd=ROOT, env=dict(os.environ), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )  # fmt: skip
    try:
        text, _ = process.communicate(timeout=max(1.0, context.seconds_left))
        code: int | None = process.returncode
    except subprocess.TimeoutExpired:
        process.kill()
        text, _ = process.communicate()
        code = None
    print(f"== {' '.join(words)}: exit code {code}\n{text}", flush=True)
    return code, text


def stopped(context: Context, folder: Path, code: int | None, text: str) -> int:
    """Checks that the stop names the module. Returns the step."""
    found = list(folder.glob("incidents/*/diagnosis.json"))
    diagnosis: dict[str, Any] = json.loads(found[0].read_text(encoding="utf-8")) if found else {}
    context.check(code == EXIT_COLLAPSED, f"stop: exit code {code}, to be {EXIT_COLLAPSED}")
    context.check(diagnosis.get("module") == MODULE, f"stop: blames {diagnosis.get('module')}, to be {MODULE}")
    context.check(MODULE in text, "stop: the screen names the module")
    context.number(collapse_step=diagnosis.get("step"), module=diagnosis.get("module"), kind=diagnosis.get("kind"))
    context.line(
        f"stop   exit code {code}, step {diagnosis.get('step')}: {diagnosis.get('kind')} in {diagnosis.get('module')}"
    )
    return int(diagnosis.get("step") or 0)


def healed(context: Context, folder: Path, code: int | None, text: str, n_steps: int) -> None:
    """Checks that the healed run finished with a finite loss."""
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = [row for row in map(json.loads, lines) if "learning_rate" in row]
    last = rows[-1] if rows else {}
    context.check(code == 0, f"heal: exit code {code}")
    context.check(last.get("step") == n_steps and last.get("loss") is not None, f"heal: ends with {last}")
    context.check(any(row["loss"] is None for row in rows), "heal: the collapse was met")
    context.line(f"heal   exit code {code}, step {last.get('step')} of {n_steps}, loss {last.get('loss')}")


def stock(context: Context, out: Path, code: int | None, text: str) -> None:
    """Checks that the stock Trainer prints loss 0 and says nothing."""
    path = out / "stock.json"
    log = json.loads(path.read_text(encoding="utf-8"))["rows"][0]["log"] if path.exists() else []
    silent = [entry for entry in log if entry["loss"] == 0 and entry["grad_norm"] is None]
    context.check(code == 0, f"stock Trainer: exit code {code}")
    context.check(bool(silent) and log[-1]["loss"] == 0, f"stock Trainer: prints loss 0: {log[-1:]}")
    context.line(f"stock  exit code {code}, loss 0 and grad_norm nan at {len(silent)} of {len(log)} steps")


def replayed(context: Context, folder: Path, step: int) -> None:
    """Checks that a step run again gives the recorded loss."""
    code, text = said(context, [*CLI, "replay", str(folder), "--step", str(step)])
    line = next((line for line in text.splitlines() if line.startswith("loss")), "")
    recorded, _, now = line.partition(", now ")
    same = next((line for line in text.splitlines() if line.startswith(("same", "differs"))), "").split(maxsplit=1)
    context.check(code in (0, EXIT_COLLAPSED), f"replay of step {step}: exit code {code}")
    context.check(bool(now) and recorded.split()[-1] == now, f"replay of step {step}: {line}")
    context.line(f"replay step {step}: {line.removeprefix('loss').strip()}; {same[-1] if same else 'no statistics'}")
