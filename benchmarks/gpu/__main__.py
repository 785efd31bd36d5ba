"""Runs the GPU path part by part and prints one table: `python -m benchmarks.gpu [--out DIR] [--dry] [PART...]`.

Needs a machine with an NVIDIA GPU, Python 3.11 or later, torch, transformers, peft and accelerate; no network. What
else is missing there comes from the folder .wheels, which `make gpu-wheels` fills where there is a network. Nothing is
installed into the system. A part that fails or hangs does not keep the others from running.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .context import ROOT
from .machine import has_gpu, machine, versions
from .parts import DRY_TOTAL_SECONDS, PARTS, TOTAL_SECONDS
from .runner import Runner, write_line


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if every part ran and was right, 1 if not, 2 if nothing could be run."""
    options = parsed(arguments)
    if not options.dry and not has_gpu():
        print("error: no NVIDIA GPU is here\nhint: --dry runs every part without one", file=sys.stderr)
        return 2
    # setup is what all others stand on
    parts = [part for part in PARTS if not options.parts or part.name in ("setup", *options.parts)]
    work = Path(tempfile.mkdtemp(prefix="lora-train-gpu-"))
    facts = machine()
    print("\n".join(f"{name:<10} {value}" for name, value in facts.items()), flush=True)
    try:
        runner = Runner(options.out, work, options.dry, options.deadline)
        write_line(options.out / "results.jsonl", {"machine": facts, "dry": options.dry})
        code = runner.run(parts)
        found = versions(work / "site")
        write_line(options.out / "results.jsonl", {"versions": found})
        head = "; ".join(facts.values()) + "\n" + ", ".join(f"{name} {version}" for name, version in found.items())
        kind = "dry run, no GPU, sizes and times mean nothing\n" if options.dry else ""
        text = f"{kind}{head}\n\n{runner.table(parts)}"
        (options.out / "table.txt").write_text(text + "\n", encoding="utf-8")
        print(f"\n{options.out}/: results.jsonl, log.txt, table.txt\n\n{text}", flush=True)
        return code
    finally:
        shutil.rmtree(work, ignore_errors=True)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        epilog="parts:\n" + "\n".join(f"  {part.name:<10} {part.seconds:>3.0f} s  {part.what}" for part in PARTS),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="only these, and setup before them")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu", metavar="DIR", help="default: runs/gpu")
    parser.add_argument("--dry", action="store_true", help="without a GPU, on tiny sizes: executes, measures nothing")
    parser.add_argument(
        "--deadline", type=float, metavar="SECONDS",
        help=f"parts that cannot start before it are printed as not run (default {TOTAL_SECONDS:.0f})",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.parts) - {part.name for part in PARTS}):
        parser.error(f"unknown: {' '.join(unknown)}; parts are {', '.join(part.name for part in PARTS)}")
    if options.deadline is None:
        options.deadline = DRY_TOTAL_SECONDS if options.dry else TOTAL_SECONDS
    return options


if __name__ == "__main__":
    sys.exit(main())
