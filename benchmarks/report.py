"""How long a report of a long run takes to make and to open, and how large it is; and what explain and the helps take.

    python -m benchmarks.report [--steps 10000] [--sites 1120]
    python -m benchmarks.report --screenshots docs        pictures of the page of tests/runs/healed, at two widths

The run is made up: numbers of the size and noise of a real one, written by the writer that a run uses, compacted as at
its end, and measured. Opening needs Chromium and playwright; without them that line says so.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lora_train.instrument.read.compact import compact
from lora_train.instrument.read.store import COLUMNS, MetricsLog, Site, StatsWriter, write_sites

TENSORS = ("in", "out", "grad_out", "grad_in", "lora_A.grad", "lora_B.grad")
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
HISTOGRAM_EVERY = 100
ZEROS = ("skipped", "nonfinite_micro_batches", "eval_seconds_total", "save_seconds_total")
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Bar:
    """A number that is to stay under a limit; value None where it could not be measured, and why."""

    what: str
    value: float | None
    limit: float
    unit: str
    why: str = ""

    @property
    def met(self) -> bool:
        return self.value is None or self.value <= self.limit

    def __str__(self) -> str:
        if self.value is None:
            return f"SKIP   {self.what}: {self.why}"
        return f"{'PASS' if self.met else 'SHORT':<6} {self.what}: {self.value:.2f} {self.unit}, bar {self.limit:g}"


def make_run(folder: Path, n_steps: int, n_sites: int) -> None:
    """Writes a run of that size."""
    noise = np.random.default_rng(0)
    sites = [
        Site(i, f"model.layers.{i // 42}.{MODULES[i // 6 % 7]}", TENSORS[i % 6], (64,), "float16", i // 6)
        for i in range(n_sites)
    ]
    write_sites(folder, sites)
    env = {"schema_version": 1, "versions": {"torch": "2.13.0"}}
    (folder / "env.json").write_text(json.dumps(env), encoding="utf-8")
    (folder / "config.yaml").write_text("training: {output_dir: runs/long, fp16: true}\n", encoding="utf-8")
    metrics, stats = MetricsLog(folder, 0), StatsWriter(folder, 0, n_sites)
    level = noise.lognormal(0, 2, n_sites)
    for step in range(1, n_steps + 1):
        rows = np.zeros((n_sites, len(COLUMNS)))
        rows[:, 0] = level**2 * noise.lognormal(0, 0.3, n_sites)
        rows[:, 1] = level * noise.lognormal(0, 0.3, n_sites)
        rows[:, COLUMNS.index("n")] = 1e6
        rows[:, 9:] = np.nan
        exponents = None
        if step % HISTOGRAM_EVERY == 0:
            exponents = np.zeros((n_sites, 256), np.int64)
            exponents[:, 100:130] = noise.integers(1, 10**5, (n_sites, 30))
        stats.write(step, rows, exponents)
        loss = 2 + 1.5 * float(np.exp(-step / 800)) + 0.1 * noise.standard_normal()
        line = {"step": step, "updates": step, "epoch": step / 5000, "loss": loss, "loss_scale": 65536.0}
        line |= {"learning_rate": 1e-4 * (1 - step / n_steps), "grad_norm": float(noise.lognormal(0, 0.3))}
        line |= {"tokens": 2000, "supervised_tokens": 1000, "tokens_per_second": 610.0, "step_seconds": 3.3}
        line |= {"max_sequence_length": int(noise.integers(200, 1024)), "memory_reserved_gib": 17.3}
        metrics.write({**line, **dict.fromkeys(ZEROS, 0)})
    metrics.write({"train_runtime": 3.3 * n_steps})
    metrics.close()
    stats.close()


def seconds_of(command: list[str]) -> tuple[float, float]:
    """Wall time of a command and its peak memory in GiB."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{' '.join(command)} ended with {status}")
    return time.perf_counter() - started, usage.ru_maxrss / 2**20


READABLE, DRAWN, APPENDED, ANEW = "the text can be read", "the first chart is drawn", "a step is added", "drawn anew"
APPEND = "loraTrain.append([{ step: STEPS.at(-1) + 1, loss: 2, grad_norm: 1, tokens: 2000, step_seconds: 3.3 }])"


def opening(page: Path) -> tuple[dict[str, float], str]:
    """Seconds until the text of a page can be read, until its first chart is drawn, and what changing it takes then.

    Each the best of three; none and the reason where there is no browser.
    """
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return {}, "playwright is not installed"
    if chromium is None:
        return {}, "there is no Chromium"
    taken: dict[str, list[float]] = {READABLE: [], DRAWN: [], APPENDED: [], ANEW: []}
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for _ in range(3):
            tab = browser.new_page()
            started = time.perf_counter()
            tab.goto(page.as_uri(), wait_until="commit")
            tab.wait_for_selector("#loss", state="attached")
            tab.evaluate("document.getElementById('loss').scrollIntoView()")
            tab.wait_for_selector("#loss canvas")
            taken[DRAWN].append(time.perf_counter() - started)
            painted = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
            taken[READABLE].append(tab.evaluate(painted) / 1e3)
            for name, act in ((APPENDED, APPEND), (ANEW, "loraTrain.update({})")):
                spent = f"(() => {{ const began = performance.now(); {act}; return performance.now() - began; }})()"
                taken[name].append(tab.evaluate(spent) / 1e3)
            tab.close()
        browser.close()
    return {name: min(seconds) for name, seconds in taken.items()}, ""


def screenshots(folder: Path) -> None:
    """Writes report-desktop.png (English, light) and report-phone.png (Korean, dark)."""
    from lora_train.instrument.show.report import write_report
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as name, sync_playwright() as driver:
        run = shutil.copytree(ROOT / "tests" / "runs" / "healed", Path(name) / "runs" / "healed")
        os.chdir(name)
        page = write_report(run.relative_to(name)).resolve()
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for kind, width, height, lang, scheme in (
            ("desktop", 1200, 1900, "en", "light"),
            ("phone", 390, 1500, "ko", "dark"),
        ):
            size: Any = {"width": width, "height": height}
            tab = browser.new_page(viewport=size, color_scheme=scheme)  # pyright: ignore[reportArgumentType]
            tab.goto(page.as_uri())
            tab.click(f"#lang-{lang}")
            if kind == "desktop":  # the layers: the last curve before the collapse and what came after it
                tab.select_option("#quantity", "norm")
            tab.wait_for_selector("#loss canvas")
            tab.wait_for_timeout(500)
            tab.screenshot(path=str(folder.resolve() / f"report-{kind}.png"))
        browser.close()


def main() -> int:
    """Prints every bar; 1 if one is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--sites", type=int, default=1_120)
    parser.add_argument("--screenshots", type=Path, metavar="FOLDER", help="write pictures, measure nothing")
    options = parser.parse_args()
    if options.screenshots:
        screenshots(options.screenshots.resolve())
        return 0
    command = str(Path(sys.executable).with_name("lora-train"))
    with tempfile.TemporaryDirectory() as name:
        run = Path(name) / "long"
        run.mkdir()
        make_run(run, options.steps, options.sites)
        live, live_gib = seconds_of([command, "report", str(run), "-o", str(run / "live.html")])
        compact(run)
        made, gib = seconds_of([command, "report", str(run)])
        size = (run / "report.html").stat().st_size / 2**20
        log = ROOT / "tests" / "runs" / "stock" / "trainer_state.json"
        seconds_of([command, "report", str(log), "-o", str(run / "log.html")])
        small = (run / "log.html").stat().st_size / 2**20
        opened, why = opening(run / "report.html")
        explained, _ = seconds_of([command, "explain", str(run)])
    helps = {
        verb: min(seconds_of([command, verb, "--help"])[0] for _ in range(3))
        for verb in ("explain", "report", "compare")
    }
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(f"{machine}; {options.steps:,} steps of {options.sites:,} sites")
    bars = [
        Bar("report of a compacted run, to make", made, 10, "s"),
        Bar("report of a run that still goes on, to make", live, 10, "s"),
        Bar("its size", size, 8, "MiB"),
        Bar("size of the page of a log of 60 lines", small, 0.7, "MiB"),
        Bar(f"to open: {READABLE}", opened.get(READABLE), 2, "s", why),
        Bar(f"to open: {DRAWN}", opened.get(DRAWN), 1.5, "s", why),
        Bar(f"while it is open: {APPENDED}", opened.get(APPENDED), 0.1, "s", why),
        Bar(f"while it is open: {ANEW}", opened.get(ANEW), 0.5, "s", why),
        *(Bar(f"{verb} --help", seconds, 0.4, "s") for verb, seconds in helps.items()),
    ]
    for bar in bars:
        print(bar)
    print(
        f"explain of it: {explained:.2f} s; memory to make the page: {gib:.2f} GiB, of the live run {live_gib:.2f} GiB"
    )
    return int(not all(bar.met for bar in bars))


if __name__ == "__main__":
    sys.exit(main())
