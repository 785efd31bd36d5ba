"""How soon the board of 1,000 runs of 1,000 steps is there, the first time and the second.

    python -m benchmarks.board [--runs 1000] [--steps 1000]

The runs are made up: metrics of the size of a real one, one evaluation in fifty steps, no statistics of layers. First
opening: rows are there at once, then pictures of the loss, then verdicts, which a process at the lowest priority makes.
Second opening: a new process finds every card in the index. Each time ends when Chromium has drawn every row, or, where
there is none, when the page is sent.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np

LIMIT = 2.0
"""Seconds that the second opening may take."""
WAITING = "[...ROWS.values()].filter((row) => {what}).length"
CONFIG = "training:\n  max_steps: {steps}\n  learning_rate: {rate}\n  output_dir: {name}\n"


def make_runs(root: Path, n_runs: int, n_steps: int) -> None:
    """Writes so many runs that have ended, each with noise of its own."""
    noise = np.random.default_rng(0)
    for number in range(n_runs):
        run = root / f"group-{number // 50:02}" / f"run-{number:04}"
        run.mkdir(parents=True)
        loss = 1.5 + np.exp(-np.arange(n_steps) / 200) + noise.normal(0, 0.05, n_steps)
        lines = []
        for i in range(n_steps):
            lines.append(step_line(i + 1, float(loss[i]), float(noise.lognormal())))
            if (i + 1) % 50 == 0:
                lines.append({"start": 0, "step": i + 1, "eval_loss": float(loss[i]) + 0.1, "eval_runtime": 2.0})
        lines.append({"start": 0, "train_runtime": 0.5 * n_steps})
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (run / "config.yaml").write_text(CONFIG.format(steps=n_steps, rate=1e-4, name=run.name))
        (run / "env.json").write_text('{"schema_version": 1, "started": "2026-01-01T00:00:00+00:00"}')
        (run / "sites.json").write_text('{"schema_version": 1, "sites": []}')
        (run / ".lock").touch()


def step_line(step: int, loss: float, norm: float) -> dict[str, Any]:
    """A line of a step as a run writes it."""
    return {
        "start": 0, "step": step, "updates": step, "epoch": step / 500, "loss": loss, "learning_rate": 1e-4,
        "grad_norm": norm, "loss_scale": 1.0, "skipped": False, "nonfinite_micro_batches": 0, "tokens": 374,
        "supervised_tokens": 149, "tokens_per_second": 748.0, "step_seconds": 0.5, "max_sequence_length": 102,
        "memory_allocated_gib": None, "memory_reserved_gib": None, "host_memory_gib": 1.58, "eval_seconds_total": 0.0,
        "save_seconds_total": 0.0,
    }  # fmt: skip


@contextmanager
def board(root: Path) -> Iterator[str]:
    """A board in a process of its own; its address."""
    command = [sys.executable, "-m", "lora_train.trainer.cli", "board", str(root), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().split()[-1]
    finally:
        process.terminate()
        code = process.wait(timeout=60)
        print(f"ended with exit code {code}")


@contextmanager
def browser() -> Iterator[Any]:
    """A page of Chromium; None where there is none, with the reason printed."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        chromium = None
    if chromium is None:
        print("SKIP   drawing: there is no Chromium, or playwright is not installed")
        yield None
        return
    with sync_playwright() as driver:
        own = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield own.new_page(viewport={"width": 1280, "height": 900})
        own.close()


def opened(root: Path, page: Any, n_runs: int) -> tuple[float, int]:
    """Seconds from the command until every row is there, and how many of them have no verdict yet; waits for those."""
    began = time.perf_counter()
    with board(root) as address:
        if page is None:
            text = urlopen(address).read().decode()
            took, waiting = time.perf_counter() - began, text.count('"pending":true')
            return took, waiting
        page.goto(address)
        drawn = page.evaluate("document.querySelectorAll('tbody tr').length")
        assert drawn == n_runs, drawn
        took, waiting = time.perf_counter() - began, page.evaluate(WAITING.format(what="row.pending"))
        for name, what in (("pictures", "!row.spark"), ("verdicts", "row.pending")):
            while page.evaluate(WAITING.format(what=what)):
                time.sleep(0.2)
            print(f"       all {name} after {time.perf_counter() - began:.1f} s")
        return took, waiting


def main() -> int:
    """Measures, prints, and returns whether the second opening was quick enough."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=1000)
    arguments = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as name, browser() as page:
        os.environ["XDG_CACHE_HOME"] = str(Path(name) / "cache")
        root = Path(name) / "runs"
        make_runs(root, arguments.runs, arguments.steps)
        size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file()) / 2**20
        print(f"{arguments.runs:,} runs of {arguments.steps:,} steps, {size:,.0f} MiB")
        first, waiting = opened(root, page, arguments.runs)
        print(f"first opening: every row after {first:.2f} s, {waiting:,} of them still to be judged")
        second, waiting = opened(root, page, arguments.runs)
        met = second <= LIMIT and not waiting
        print(f"{'PASS' if met else 'SHORT':<6} second opening: complete after {second:.2f} s, bar {LIMIT:g} s")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
