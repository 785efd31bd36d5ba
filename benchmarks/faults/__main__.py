"""Runs the cases of a seed and prints one line for each; exit code 1 if any is not as it should be."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from .draw import FAULTS, Case, draw

if TYPE_CHECKING:
    from .check import Report


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the cases of a seed.

    Returns:
        0 if every fault was found and named and nothing else was, else 1.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cases", type=int, default=60, help="runs with a fault (60)")
    parser.add_argument("--healthy", type=int, default=20, help="runs without one (20)")
    parser.add_argument("--only", choices=[*FAULTS, *sorted(set(FAULTS.values())), "healthy"], metavar="KIND")
    parser.add_argument("--case", help="one case by its name, such as norm-3")
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each (2)")
    parser.add_argument("--verbose", action="store_true", help="print what the runs of failed cases printed")
    options = parser.parse_args(arguments)
    cases = draw(options.seed, options.cases, options.healthy, options.only)
    cases = [case for case in cases if options.case in (None, case.name)]

    started = time.monotonic()
    reports = []
    for report in run_all(cases, options.seed, options.workers):
        reports.append(report)
        print(line(report), flush=True)
        if options.verbose and report.wrong:
            print(report.output, flush=True)
    print(table(reports))
    print(f"{versions()}; seed {options.seed}, {len(cases)} cases, {time.monotonic() - started:.0f} s")
    return int(any(report.wrong for report in reports))


def run_all(cases: Sequence[Case], seed: int, workers: int) -> Iterator[Report]:
    """Runs cases in processes of their own, in order."""
    os.environ.update(LORA_TRAIN_LANG="en", HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", NO_COLOR="1")
    from .check import run_case
    from .models import make_model, make_tokenizer

    n, context = len(cases), multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="faults-") as name, ProcessPoolExecutor(workers, context) as pool:
        models, runs = Path(name) / "models", Path(name) / "runs"
        make_tokenizer(models / "tokenizer")
        needed = sorted({(case.arch, case.layers) for case in cases})
        for job in [pool.submit(make_model, models, *which, seed) for which in needed]:
            job.result()
        yield from pool.map(run_case, cases, [models] * n, [runs] * n)


def line(report: Report) -> str:
    """A case in one line: what was planted, what was found, what is wrong."""
    case = report.case
    kind, module, step = report.found
    found = "silent" if case.fault is None and not report.wrong else f"{kind} {module or '-'} step {step}"
    verdict = "WRONG " + "; ".join(report.wrong) if report.wrong else "OK " + "; ".join(report.notes)
    head = f"{case.name:<16} {case.arch:<8} {case.precision:<8} {case.kind or 'healthy':<21}"
    return f"{head} {found:<62} {report.seconds:5.1f} s  {verdict}".rstrip()


def table(reports: Sequence[Report]) -> str:
    """How many cases of each kind were found, named and healed."""
    lines = [f"\n{'kind':<21} {'cases':>5} {'right':>5} {'missed':>6} {'misnamed':>8} {'otherwise wrong':>15}"]
    for kind in dict.fromkeys([*FAULTS.values(), None]):
        own = [report for report in reports if report.case.kind == kind]
        missed = sum(report.found[0] is None for report in own if kind)
        misnamed = sum(report.found[0] not in (None, kind) for report in own)
        right = sum(not report.wrong for report in own)
        rest = len(own) - right - missed - misnamed
        lines.append(f"{kind or 'healthy':<21} {len(own):>5} {right:>5} {missed:>6} {misnamed:>8} {rest:>15}")
    return "\n".join(lines)


def versions() -> str:
    """Machine and libraries."""
    import bitsandbytes
    import peft
    import torch
    import transformers

    libraries = ", ".join(f"{m.__name__} {m.__version__}" for m in (torch, transformers, peft, bitsandbytes))
    return f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {libraries}"


if __name__ == "__main__":
    sys.exit(main())
