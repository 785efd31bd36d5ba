"""The run that ends as loss 0.0: one small GPT-NeoX whose float16 overflows while it trains, run five times.

    python -m benchmarks.collapse [--out runs/collapse] [--seed 0]

The stock Trainer three times, then lora-train with precision.on_collapse=stop and =heal. Model, tokens, seed, order of
rows, batch size and number of steps are the same for all. Needs a CPU and less than three minutes. Ends with PASS or
FAIL for every promise, and exits 1 if one is not kept. Writes collapse.svg, collapse.json and every log to --out.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import psutil
from rich.console import Console

from .bars import Bar, bar_time, judge
from .contenders import Contender, run_ours, run_stock
from .picture import collapse_svg
from .screen import excerpt, machine, scale_story, side_by_side, table, verdict

NO_SCALER_ON_CPU = (
    "The stock Trainer has no loss scaling on a CPU, so three lines attach torch's GradScaler and float16 autocast, "
    "which is what fp16=True sets up on a GPU."
)


def main() -> int:
    """Runs everything."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.collapse", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/collapse"), help="working folder (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, adapter and order of rows (%(default)s)")
    arguments = parser.parse_args()
    out: Path = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    console = Console(width=None if sys.stdout.isatty() else 160)

    facts = machine()
    say(console, ", ".join(f"{name} {value}" for name, value in facts.items()))
    from lora_train.instrument.constants import FP16_MAX

    from .model import MODULE, NEURON_INPUT, OUTPUT_WEIGHT, write_work

    config = write_work(out, arguments.seed)
    say(console, f"{MODULE} gives {NEURON_INPUT * OUTPUT_WEIGHT:,.0f} of {FP16_MAX:,.0f} before training")
    say(console, f"1/3  stock Trainer, three times. {NO_SCALER_ON_CPU}")
    stock, batches = run_stock(config, out)
    say(console, "2/3  lora-train, precision.on_collapse=stop")
    stop = run_ours(config, out, "stop")
    say(console, "3/3  lora-train, precision.on_collapse=heal")
    heal = run_ours(config, out, "heal")

    show(stock, stop, heal, console)
    bars = judge(stock, stop, heal, batches)
    picture(stock[0], heal, out / "collapse.svg")
    bars.append(bar_time(time.time() - psutil.Process().create_time()))
    verdict(bars, console)
    write_json(out / "collapse.json", arguments.seed, facts, [*stock, stop, heal], bars)
    say(console, f"\npicture  {out / 'collapse.svg'}\nnumbers  {out / 'collapse.json'}\nlogs     {out}/*.log")
    return 0 if all(bar.kept for bar in bars) else 1


def show(stock: list[Contender], stop: Contender, heal: Contender, console: Console) -> None:
    """Logs first, then the table."""
    for line in ("", *side_by_side(stock[0], heal), ""):
        say(console, line)
    for row in stock[1:]:
        for line in (*excerpt(row), ""):
            say(console, line)
    say(console, f"{stop.name}:")
    for line in (*(f"  {line}" for line in stop.said), "", scale_story(stock[0])):
        say(console, line)
    console.print(table([*stock, stop, heal]))


def say(console: Console, line: str) -> None:
    """A line as it is: not wrapped, not coloured."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def picture(stock: Contender, heal: Contender, path: Path) -> None:
    """Writes the SVG."""
    svg = collapse_svg(
        "The run that ends as loss 0.0",
        [entry["loss"] for entry in stock.logged],
        stock.losses,
        heal.losses,
        stock.collapse_step or len(stock.losses),
        heal.collapse_step,
    )
    path.write_text(svg, encoding="utf-8")


def write_json(path: Path, seed: int, facts: dict, contenders: list[Contender], bars: list[Bar]) -> None:
    """Writes all numbers."""
    rows = []
    for one in contenders:
        numbers = {key: value for key, value in asdict(one).items() if key != "lines"}
        rows.append({**numbers, "last_healthy": one.last_healthy, "lr_moves": one.lr_moves()})
    written = {"seed": seed, "machine": facts, "contenders": rows, "bars": [asdict(bar) for bar in bars]}
    path.write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
