"""Takes turns between the contenders, a step each on the same batch, and prints what a step costs.

Every contender is a process of its own, so that its peak memory is its own; only one computes at a time. Ratios are
medians over the steps of the ratio to the stock Trainer's step on the same batch, with a 95% interval from resampling.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .contender import NAMES
from .work import ROOT, WORKS, Work, configuration, write_rows

N_WARM_UP = 3
N_RESAMPLES = 2000


@dataclass(frozen=True)
class Row:
    """One contender at one work, as the CSV has it: seconds a step, MiB, and ratios to the stock Trainer."""

    work: str
    contender: str
    wall_p20: float
    wall_p50: float
    wall_p80: float
    cpu_p50: float
    ratio: float
    ratio_low: float
    ratio_high: float
    peak_mib: float
    peak_ratio: float
    loss: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table and the bars; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=__doc__)
    parser.add_argument("works", nargs="*", default=["full"], choices=sorted(WORKS), metavar="WORK")
    parser.add_argument("--steps", type=int, default=12, help="measured steps of each contender (12)")
    parser.add_argument("--contenders", nargs="*", default=list(NAMES), choices=NAMES)
    parser.add_argument("--csv", type=Path, default=ROOT / "runs" / "overhead.csv")
    options = parser.parse_args(arguments)
    load = os.getloadavg()[0]
    print(f"{machine()}; load {load:.1f} before" + (" (busy: these times mean little)" if load > 0.7 else ""))
    rows: list[Row] = []
    for name in options.works:
        found = measure(WORKS[name], options.contenders, options.steps)
        rows += found
        show(WORKS[name], found)
    options.csv.parent.mkdir(parents=True, exist_ok=True)
    with options.csv.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(asdict(rows[0])))
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    return int(not all(bars(WORKS[name], [row for row in rows if row.work == name]) for name in options.works))


def measure(work: Work, contenders: Sequence[str], n_steps: int) -> list[Row]:
    """Runs the steps in turns."""
    total = N_WARM_UP + n_steps + 1
    with tempfile.TemporaryDirectory(prefix="overhead-") as name:
        folder = Path(name)
        write_rows(folder / "rows.jsonl", work.batch * total)
        processes = {}
        steps: dict[str, list[dict[str, float]]] = {contender: [] for contender in contenders}
        for contender in contenders:
            path = folder / f"{contender}.json"
            path.write_text(json.dumps(configuration(work, folder / "rows.jsonl", folder / contender, total)))
            command = [sys.executable, "-m", "benchmarks.overhead.contender", contender, str(path)]
            with (folder / f"{contender}.log").open("w") as log:
                processes[contender] = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT
                )
            answer(processes[contender], folder / f"{contender}.log")  # loaded: one at a time
        for _ in range(N_WARM_UP + n_steps):
            for contender, process in processes.items():
                assert process.stdin is not None
                process.stdin.write("go\n")
                process.stdin.flush()
                steps[contender].append(answer(process, folder / f"{contender}.log"))
        for process in processes.values():
            process.communicate()
    return [row_of(work, contender, steps) for contender in contenders]


def answer(process: subprocess.Popen, log: Path) -> dict[str, float]:
    """The next line of a contender.

    Raises:
        RuntimeError: it died; the end of what it printed is in the message.
    """
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{process.args} died:\n{log.read_text()[-2000:]}")
    return json.loads(line)


def row_of(work: Work, contender: str, steps: dict[str, list[dict[str, float]]]) -> Row:
    """Percentiles, and ratios step by step."""
    own, first = steps[contender][N_WARM_UP:], steps[next(iter(steps))][N_WARM_UP:]
    walls = sorted(step["wall"] for step in own)
    ratios = [step["wall"] / base["wall"] for step, base in zip(own, first, strict=True)]
    low, high = interval(ratios)
    peak, base_peak = own[-1]["peak_mib"], first[-1]["peak_mib"]
    p20, p50, p80 = (percentile(walls, share) for share in (0.2, 0.5, 0.8))
    return Row(
        work=work.name,
        contender=contender,
        wall_p20=p20,
        wall_p50=p50,
        wall_p80=p80,
        cpu_p50=statistics.median(step["cpu"] for step in own),
        ratio=statistics.median(ratios),
        ratio_low=low,
        ratio_high=high,
        peak_mib=peak,
        peak_ratio=peak / base_peak,
        loss=own[-1]["loss"],
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which that share lies."""
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95% of the medians of resampled values."""
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(N_RESAMPLES))
    return percentile(medians, 0.025), percentile(medians, 0.975)


def show(work: Work, rows: Sequence[Row]) -> None:
    """One line a contender."""
    kind = "NF4 base" if work.nf4 else "float32 base"
    print(f"\n{work.name}: SmolLM2-135M, {kind}, {work.batch} x {work.length} tokens, LoRA r=8 on all linears")
    print(f"{'contender':<13} {'p20 s':>7} {'p50 s':>7} {'p80 s':>7} {'CPU s':>7} {'ratio':>7} {'95%':>13} ", end="")
    print(f"{'peak MiB':>9} {'ratio':>6} {'loss':>8}")
    for row in rows:
        print(
            f"{row.contender:<13} {row.wall_p20:>7.3f} {row.wall_p50:>7.3f} {row.wall_p80:>7.3f} {row.cpu_p50:>7.2f} "
            f"{row.ratio:>6.2f}x {row.ratio_low:>6.2f}-{row.ratio_high:.2f} {row.peak_mib:>9,.0f} "
            f"{row.peak_ratio:>5.2f}x {row.loss:>8.4f}"
        )


def bars(work: Work, rows: Sequence[Row]) -> bool:
    """Prints what is aimed at and what was reached."""
    by_name = {row.contender: row for row in rows}
    if not {"stock", "plain", "instrumented"} <= by_name.keys():
        return True
    full, plain = by_name["instrumented"], by_name["plain"]
    checks = [(f"{work.name}: step time over stock", full.ratio, work.bar)]
    checks.append((f"{work.name}: step time over plain", full.wall_p50 / plain.wall_p50, 1.05))
    if work.name == "full":
        checks.append(("full: peak memory over stock", full.peak_ratio, 0.80))
    for what, reached, bar in checks:
        print(f"{'PASS' if reached <= bar else 'SHORT'}  {what}: {reached:.2f}x, bar {bar:.2f}x")
    return all(reached <= bar for _, reached, bar in checks)


def machine() -> str:
    """Machine and libraries."""
    import peft
    import torch
    import transformers

    libraries = ", ".join(f"{m.__name__} {m.__version__}" for m in (torch, transformers, peft))
    return f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {libraries}"


if __name__ == "__main__":
    sys.exit(main())
