"""A part's process: `python -m benchmarks.gpu.child NAME WORK UNTIL [--dry]`.

Imports the part's module, calls its `run(context)`, and keeps what it tells in WORK/NAME.json at every word, so that a
part that is killed has told what it knew. Exit code 0; 1 with a traceback or with checks that did not hold; SKIPPED.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from pathlib import Path

from .context import SKIPPED, Context, Skip
from .parts import PARTS


def main() -> int:
    """Runs the part."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.child")
    parser.add_argument("name", choices=[part.name for part in PARTS])
    parser.add_argument("work", type=Path)
    parser.add_argument("until", type=float)
    parser.add_argument("--dry", action="store_true")
    options = parser.parse_args()
    context = Context(options.name, options.dry, options.work, options.until)
    part = next(part for part in PARTS if part.name == options.name)
    try:
        row = importlib.import_module(f"{__package__}.parts.{part.module or part.name}").run(context)
    except Skip as reason:
        context.end(str(reason))
        return SKIPPED
    except BaseException as error:
        traceback.print_exc()
        context.told["failures"].append(f"{type(error).__name__}: {error}")
        context.end("")
        return 1
    context.end(row)
    return int(bool(context.told["failures"]))


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a library's thread does not keep the process
