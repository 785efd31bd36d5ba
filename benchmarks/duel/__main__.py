"""Known faults in logs of the stock Trainer: who names them, and who cries wolf.

    python -m benchmarks.duel [--seed 1] [--faults 2] [--rounds 1] [--logs] [--out FOLDER]

Others are used where they are installed: pip install --no-deps losslint soup-cli traintools trl. A row of the table is
a contender: of the faulty logs how many got an alarm, had their cause named, the first bad step (within the logging
interval), what was lost and what to do; of the healthy ones how many got an alarm. --logs prints what was said of each.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import io
import os
import platform
import shutil
import tempfile
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

from .contenders import READERS, GradientHealth, Underflow
from .plants import Plan, plans
from .stock import train
from .truth import Named, Score, score

COLUMNS = ("alarm", "cause", "step", "lost", "action")
PACKAGES = {"lora-train": "lora-vitals", "losslint": "losslint", "soup": "soup-cli", "traintools": "traintools"}


@dataclass
class Tally:
    """Of one contender."""

    faulty: Counter[str] = field(default_factory=Counter)
    false_alarms: list[str] = field(default_factory=list)
    n_faulty: int = 0
    n_healthy: int = 0

    def add(self, plan: Plan, found: Score) -> None:
        if plan.truth.cause is None:
            self.n_healthy += 1
            self.false_alarms += [plan.name] if found.alarm else []
            return
        self.n_faulty += 1
        self.faulty.update(column for column in COLUMNS if getattr(found, column))


def readings(plan: Plan, folder: Path, seed: int) -> dict[str, Named] | None:
    """What every contender says of a run; None where the run cannot be made here."""
    state = train(plan, folder / "log", seed)
    if state is None:
        return None
    found = {}
    for name, read in READERS.items():
        try:
            found[name] = read(state)
        except ImportError:
            continue
    if plan.task != "grpo":  # the others sit inside a run of their own
        found |= watched(plan, folder, seed)
    return found


def watched(plan: Plan, folder: Path, seed: int) -> dict[str, Named]:
    """What those say that watch the run, each a run of its own."""
    found = {}
    try:
        health = GradientHealth()
    except ImportError:
        health = None
    if health is not None:
        train(plan, folder / "health", seed, [health])
        found["traintools"] = health.named()
    debug, error = Underflow(), None
    with contextlib.redirect_stdout(io.StringIO()):  # it prints the last frames
        try:
            train(plan, folder / "debug", seed, [debug])
        except ValueError as raised:
            error = raised
    found["transformers"] = debug.named(error)
    return found


def duel(seed: int, faults: int, rounds: int, out: Path, show: bool) -> tuple[dict[str, Tally], int]:
    """Tallies by contender, and the number of logs."""
    tallies: dict[str, Tally] = {}
    made = 0
    for number, plan in enumerate(plans(seed, faults, rounds)):
        said = readings(plan, out / f"{number:02}", (1000 * seed + number) % 2**32)  # numpy's seeds end there
        if said is None:
            print(f"{plan.name}: not made, its trainer is not installed")
            continue
        made += 1
        interval = int(plan.arguments.get("eval_steps", plan.arguments["logging_steps"]))
        for name, named in said.items():
            found = score(plan.truth, named, interval)
            tallies.setdefault(name, Tally()).add(plan, found)
            if show:
                right = " ".join(column for column in COLUMNS if getattr(found, column))
                print(
                    f"{plan.name:<36} {name:<13} {', '.join(named.alarms) or '-'}"
                    + (f"  [{right}]" if plan.truth.cause else "")
                )
    return tallies, made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", type=int, default=2, help="logs of each fault")
    parser.add_argument("--rounds", type=int, default=1, help="logs of each healthy run")
    parser.add_argument("--out", type=Path, help="keep the logs there")
    parser.add_argument("--logs", action="store_true", help="print what was said of each log")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    out = arguments.out or Path(tempfile.mkdtemp(prefix="duel-"))
    tallies, made = duel(arguments.seed, arguments.faults, arguments.rounds, out, arguments.logs)
    if arguments.out is None:
        shutil.rmtree(out)
    faulty, healthy = tallies["lora-train"].n_faulty, tallies["lora-train"].n_healthy
    print(f"seed {arguments.seed}: {made} logs, {faulty} with a fault, {healthy} healthy")
    print(f"{'':<14}{'version':<10}" + "".join(f"{column:>8}" for column in COLUMNS) + f"{'false alarms':>14}")
    for name, tally in tallies.items():
        version = importlib.metadata.version(PACKAGES.get(name, name))
        counts = "".join(f"{tally.faulty[column]:>8}" for column in COLUMNS)
        print(f"{name:<14}{version:<10}{counts}{len(tally.false_alarms):>8} of {tally.n_healthy}")
        if tally.false_alarms:
            print(f"{'':<14}on: {', '.join(tally.false_alarms)}")
    ours = tallies["lora-train"]
    passed = ours.faulty["cause"] == ours.faulty["lost"] == faulty and not ours.false_alarms
    print(f"bar: cause and what was lost named in all {faulty}, no false alarm: {'PASS' if passed else 'SHORT'}")
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("torch", "transformers", "peft"))
    print(f"{versions}; {platform.machine()}, no GPU")


if __name__ == "__main__":
    main()
