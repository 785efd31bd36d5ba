"""Compiles with all cores what a run, an evaluation and the smokes launch, into the cache that all parts share.

What they launch on the chip at hand is seen by launching nothing: a process that sees no GPU goes through the trainer
and the operators under the fake driver. Later parts report what they still had to compile themselves.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from ..context import ROOT, Context
from ..machine import DRY_CHIP, said

DRY_VARIANTS = 6
"""Compiled in a dry run: other tests compile all of them."""

N_STEPS = 3
"""The second counts histograms and is followed by an evaluation, the third looks at every module."""

PRECISIONS: dict[str, dict[str, Any]] = {
    "fp16": {},
    "bf16": {"training.fp16": "false", "training.bf16": "true"},
    "nf4": {
        "quantization.load_in_4bit": "true",
        "quantization.bnb_4bit_use_double_quant": "true",
        "training.gradient_checkpointing": "true",
    },
}

_variants: list[Any] = []


def run(context: Context) -> str:
    """Asks which chip it is, and compiles for it in a process without a GPU."""
    found = context.folder / "found.json"
    words = [sys.executable, "-m", "benchmarks.gpu.parts.compile", chip_here(), str(context.work), str(found)]
    limit = DRY_VARIANTS if context.dry else sys.maxsize
    done = subprocess.run(
        [*words, str(limit)], cwd=ROOT, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, check=False
    )  # fmt: skip
    context.check(done.returncode == 0, f"the compiling process ends with {done.returncode}")
    facts = json.loads(found.read_text(encoding="utf-8")) if found.exists() else {}
    for error in facts.get("errors", []):
        context.check(False, error)
    context.number(**facts)
    kinds = ", ".join(f"{name} {n}" for name, n in facts.get("kernels", {}).items())
    context.line(kinds)
    of_all = f"{facts.get('compiled', 0)} of {facts.get('variants', 0)} variants"
    return f"{of_all} for sm_{facts.get('chip')} on {os.cpu_count()} cores"


def chip_here() -> str:
    """90 for sm_90; by nvidia-smi, because importing torch takes seconds."""
    digits = said("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader").replace(".", "")
    return digits if digits.isdigit() else str(DRY_CHIP)


def main() -> None:
    """Collects the variants, then compiles them: python -m benchmarks.gpu.parts.compile CHIP WORK FOUND LIMIT."""
    chip, work, found, limit = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    started = time.perf_counter()
    _variants.extend(launched(chip, work)[:limit])
    collected = time.perf_counter() - started
    # forked: a kernel cannot be sent to another process, its place in the list can
    with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
        errors = [error for error in pool.map(compile_one, range(len(_variants)), chunksize=1) if error]
    facts = {
        "chip": chip,
        "variants": len(_variants),
        "compiled": len(_variants) - len(errors),
        "kernels": dict(Counter(variant.name for variant in _variants).most_common()),
        "collect_seconds": collected,
        "compile_seconds": time.perf_counter() - started - collected,
        "errors": errors,
    }
    found.write_text(json.dumps(facts), encoding="utf-8")


def launched(chip: int, work: Path) -> list[Any]:
    """Every variant that a run of each family and precision launches, evaluation included, and what the smokes do."""
    from ...fake_cuda import fake_cuda
    from ...fake_cuda.runs import FAMILIES, Run, train
    from . import smokes

    distinct: dict[str, Any] = {}
    for family in FAMILIES:
        for precision, overrides in PRECISIONS.items():
            folder = work / f"launched-{family}-{precision}"
            seen = train(folder, chip, Run(family, N_STEPS, watch=False, overrides=overrides))
            assert seen.code == 0, seen.output
            distinct |= {variant.key(): variant for variant in seen.driver.variants}
    with fake_cuda(chip) as driver:
        smokes.launch()
    distinct |= {variant.key(): variant for variant in driver.variants}
    return list(distinct.values())


def compile_one(index: int) -> str:
    """Compiles a variant; says what went wrong, if anything did."""
    try:
        _variants[index].compile()
    except Exception as error:
        return f"{_variants[index].key()[:300]}: {type(error).__name__}: {str(error)[:300]}"
    return ""


if __name__ == "__main__":
    main()
