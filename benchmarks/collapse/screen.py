"""What the demonstration prints: both logs side by side, the stock rows' logs, a table, the verdict."""

from __future__ import annotations

import importlib.metadata
import platform
import textwrap
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from .bars import Bar
from .contenders import Contender

PACKAGES = ("torch", "transformers", "accelerate", "peft", "bitsandbytes", "lora-vitals")
LEFT_WIDTH, RIGHT_WIDTH = 72, 78
STEPS_AROUND = 3


def machine() -> dict[str, str]:
    """Processor and versions."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = f"{names[0]}, {len(names)} logical cores" if names else cpu
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"cpu": cpu, "threads": "1", "python": platform.python_version(), **versions}


def side_by_side(stock: Contender, ours: Contender) -> list[str]:
    """The stock Trainer's log on the left, ours on the right, a few steps before to after both collapses."""
    steps = [step for step in (stock.collapse_step, ours.collapse_step) if step is not None]
    if not steps:
        return ["no collapse"]
    end = max(len(stock.losses), len(ours.losses))
    shown = [*range(max(1, min(steps) - STEPS_AROUND), min(end, max(steps) + STEPS_AROUND) + 1), end]
    lines = [f"{stock.name:<{LEFT_WIDTH}} | {ours.name}", f"{'-' * LEFT_WIDTH}-+-{'-' * RIGHT_WIDTH}"]
    for at, step in enumerate(shown):
        if at and step > shown[at - 1] + 1:
            lines.append(f"{'...':<{LEFT_WIDTH}} | ...")
        if step == ours.collapse_step:
            # the whole of it is printed below
            lines += [
                f"{'':<{LEFT_WIDTH}} | {textwrap.shorten(line, RIGHT_WIDTH, placeholder=' ...')}"
                for line in ours.said[:2]
            ]
        lines.append(f"{short_stock(stock.lines.get(step, '')):<{LEFT_WIDTH}} | {short_ours(ours.lines.get(step, ''))}")
    return lines


def short_stock(line: str) -> str:
    """The Trainer's line without the epoch."""
    return line.partition(", 'epoch'")[0]


def short_ours(line: str) -> str:
    """Our line up to the count of skipped steps."""
    head, found, tail = line.partition("skipped ")
    return head + found + tail.partition(" ")[0]


def excerpt(row: Contender) -> list[str]:
    """A stock log around its collapse, and its last line."""
    step = row.collapse_step or len(row.lines)
    near = [row.lines[at] for at in range(max(1, step - STEPS_AROUND), step + STEPS_AROUND) if at in row.lines]
    return [
        f"{row.name} (collapse at step {step}):",
        *(f"  {line}" for line in (*near, "...", row.lines[len(row.lines)])),
    ]


def scale_story(row: Contender) -> str:
    """What became of the loss scale."""
    return (
        f"{row.name}: {row.skipped} skipped steps took the loss scale from 65536 to {row.loss_scale:.2g}, one halving "
        "each. After 166 it is exactly 0, and then not even a finite loss gives a finite gradient."
    )


def table(contenders: Sequence[Contender]) -> Table:
    """What each did."""
    columns = (
        "contender",
        "collapse",
        "last healthy",
        "logged loss",
        "grad_norm",
        "lr",
        "weights",
        "exit",
        "said",
    )
    shown = Table(*columns, box=box.SIMPLE_HEAD)
    for one in contenders:
        loss, norm = (one.logged[-1].get(key) if one.logged else None for key in ("loss", "grad_norm"))
        nothing = "nothing" if one.diagnosis is None and not one.said else ""
        said = nothing or next((line for line in one.said if "COLLAPSE" in line), " ".join(one.said[:1]))
        shown.add_row(
            one.name,
            str(one.collapse_step or "-"),
            str(one.last_healthy),
            "null" if loss is None else f"{loss:.4g}" if loss else "0.0",
            "nan" if norm is None else f"{norm:.3g}",
            {True: "moves", False: "frozen", None: "-"}[one.lr_moves()],
            weights(one),
            str(one.exit_code),
            said,
        )
    return shown


def weights(one: Contender) -> str:
    """Whether the adapter left behind is alive."""
    if one.weights is None:
        return "-"
    n_bad, n = one.weights
    return f"dead: {n_bad:,} of {n:,} not finite" if n_bad else "intact"


def verdict(bars: Sequence[Bar], console: Console) -> None:
    """PASS or FAIL for each promise."""
    for bar in bars:
        word = "[green]PASS[/]" if bar.kept else "[red]FAIL[/]"
        console.print(f"{word}  {bar.promise}  [dim]({bar.found.replace('[', chr(92) + '[')})[/]", highlight=False)
