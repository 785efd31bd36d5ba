"""Runs training on GPUs that are not there and prints what each would have launched, compiled and waited for.

    python -m benchmarks.fake_cuda [--chip 90] [--run llama] [--compile] [--json FILE]

Exit code 1 if a kernel does not compile, a variant appears after the first step, a launch budget is exceeded, or
something would make the host wait or copy pageable memory; each is named.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import attached, runs
from .driver import Variant, fake_cuda
from .runs import Run, Seen

CHIPS = (75, 80, 90)

LAYER_BUDGET, LINEAR_BUDGET, VARIANTS_BUDGET = 30, 7, 60
"""Triton launches of a LLaMA layer of seven LoRA linears and of one LoRA linear, forward and backward with statistics;
variants that a whole run compiles."""


def many_lengths(n: int) -> list[int]:
    """Tokens of `n` rows, any but the same."""
    draw = random.Random(0)
    return [draw.randrange(2, 400) for _ in range(n)]


def edges(_folder: Path, chip: int) -> Seen:
    """One of everything: one row, one column, one rank, one token, one value."""
    import torch
    from lora_train.kernels.cross_entropy import linear_cross_entropy
    from lora_train.kernels.lora_linear import Examples, lora_linear
    from lora_train.kernels.statistics.exponents import exponent_histogram
    from lora_train.kernels.statistics.multi_tensor import multi_tensor_stats
    from lora_train.kernels.statistics.tensor_stats import tensor_stats

    with fake_cuda(chip) as driver:
        for m, k, n, rank in ((1, 64, 64, 4), (1, 1, 1, 1), (17, 1, 64, 1), (17, 64, 1, 1), (2, 64, 64, 1)):
            x = torch.zeros(m, k, dtype=torch.float16, requires_grad=True)
            a, b = torch.zeros(rank, k, requires_grad=True), torch.zeros(n, rank, requires_grad=True)
            slot, seed = torch.zeros(6, 9, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
            weight = torch.zeros(n, k, dtype=torch.float16)
            for examples in (None, Examples([0, m], torch.zeros(1, 2, dtype=torch.float64))):
                how: Any = {"dropout_p": 0.1, "seed": seed, "slot": slot, "examples": examples}
                (y,) = lora_linear(x, [weight], [a], [b], [1.0], **how)
                y.backward(torch.ones_like(y))
            hidden = torch.zeros(m, k, dtype=torch.float16, requires_grad=True)
            linear_cross_entropy(hidden, weight, torch.zeros(m, dtype=torch.int64))[0].backward()
            exponent_histogram(x)
            tensor_stats(x)
            multi_tensor_stats([a.detach(), b.detach()])
    return Seen(driver, code=0, n_after_first_step=len(driver.variants))


RUNS: dict[str, Callable[[Path, int], Seen]] = {
    "llama": lambda folder, chip: runs.train(folder, chip, Run("llama", 6)),
    "gpt_neox nf4": lambda folder, chip: runs.train(
        folder, chip,
        Run("gpt_neox", 4,
            overrides={"quantization.load_in_4bit": "true", "training.gradient_checkpointing": "true"}),
    ),
    "llama rolls back": lambda folder, chip: runs.train(
        folder, chip,
        Run("llama", 4, bad_row=2, watch=False, verbs={"replay": ["--step", "2"]},
            overrides={"precision.on_collapse": "rollback"}),
    ),
    "callback": lambda folder, chip: attached.train(folder, chip, "llama", 4),
    "one of everything": edges,
    "200 micro-batches": lambda folder, chip: runs.train(
        folder, chip, Run("llama", 100, many_lengths(200), watch=False, overrides={"training.eval_steps": 25})
    ),
}  # fmt: skip

# Lengths do not depend on the chip, and the longest run says nothing that a shorter one does not say of another chip.
ONLY_ON = {"200 micro-batches": (90,)}


@dataclass
class Result:
    """What one run on one chip came to."""

    run: str
    chip: int
    seen: Seen | None = None
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)


def launches_of_a_layer(chip: int) -> dict[str, int]:
    """Launches that one more LLaMA layer costs a micro-batch, and those of one LoRA linear, both with statistics."""
    with tempfile.TemporaryDirectory() as folder:
        counts = []
        for n_layers in (2, 3):
            runs.write_model(Path(folder) / str(n_layers) / "llama", "llama", num_hidden_layers=n_layers)
            how: dict[str, Any] = {"training.gradient_accumulation_steps": 1, "training.eval_strategy": "no"}
            run = Run("llama", 1, (64,), watch=False, overrides=how)
            seen = runs.train(Path(folder) / str(n_layers), chip, run)
            counts.append(sum(n for name, n in seen.steps[0].launches.items() if name in LORA_KERNELS))
    return {"layer": counts[1] - counts[0], "linear": launches_of_a_linear(chip)}


LORA_KERNELS = {
    "_down_kernel", "_up_kernel", "_grad_kernel", "_total_down_kernel", "_total_gradients_kernel",
    "_cast_kernel", "_pending_rows_kernel",
}  # fmt: skip


def launches_of_a_linear(chip: int) -> int:
    """Launches of one LoRA linear, forward and backward, that leaves its rows, and the squares of two examples, to
    whoever writes them together.
    """
    import torch
    from lora_train.kernels.lora_linear import Examples, lora_linear
    from lora_train.kernels.statistics.pending_rows import PendingRows

    x = torch.randn(64, 64, dtype=torch.float16, requires_grad=True)
    weight, a, b = torch.randn(64, 64).half(), torch.randn(4, 64, requires_grad=True), torch.randn(64, 4)
    slot, examples = torch.empty(6, 9, dtype=torch.float64), Examples([0, 9, 64], torch.empty(2, 2).double())
    how: Any = {"slot": slot, "pending": PendingRows(), "examples": examples}
    with fake_cuda(chip) as driver:
        (y,) = lora_linear(x, [weight], [a], [b.requires_grad_()], [1.0], **how)
        y.backward(torch.ones_like(y))
    return driver.launches.total()


def check_launches(chip: int) -> list[str]:
    """Prints what a layer and a linear launch; what is wrong with it."""
    try:
        counts = launches_of_a_layer(chip)
    except Exception as error:
        return [f"sm_{chip}: {described(error)}"]
    print(f"launches of a LLaMA layer of 7 LoRA linears, sm_{chip}: {counts['layer']} (at most {LAYER_BUDGET})")
    print(f"launches of one LoRA linear, sm_{chip}: {counts['linear']} (at most {LINEAR_BUDGET})")
    exceeded = counts["layer"] > LAYER_BUDGET or counts["linear"] > LINEAR_BUDGET
    return [f"sm_{chip}: more launches than the budget: {counts}"] if exceeded else []


def described(error: Exception) -> str:
    line = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(line.filename).name}:{line.lineno})"


def check(seen: Seen) -> list[str]:
    """What is wrong with a run."""
    problems = []
    if seen.code != 0:
        problems.append(f"exit code {seen.code}: {seen.output[-400:]}")
    if seen.steps and len(seen.driver.variants) > VARIANTS_BUDGET:
        problems.append(f"{len(seen.driver.variants)} variants, more than {VARIANTS_BUDGET}")
    problems += [f"compiled after the first step: {variant.key()[:300]}" for variant in seen.late]
    problems += [f"waits: {fault}" for fault in seen.faults]
    return problems


def compile_all(variants: list[Variant], processes: int) -> list[str]:
    """Compiles variants in this many processes, Triton keeping them on disk; what could not be, with the error."""
    by_key = {(variant.chip, variant.key()): variant for variant in variants}
    global _to_compile
    _to_compile = list(by_key.values())
    if processes == 1:
        found = [_compile(index) for index in range(len(_to_compile))]
    else:  # forked, for a variant holds a function that cannot be sent
        with multiprocessing.get_context("fork").Pool(processes) as pool:
            found = pool.map(_compile, range(len(_to_compile)), chunksize=1)
    return [problem for problem in found if problem]


_to_compile: list[Variant] = []


def _compile(index: int) -> str:
    variant = _to_compile[index]
    try:
        variant.compile()
    except Exception as error:
        return f"sm_{variant.chip} {variant.name} does not compile: {type(error).__name__}: {str(error)[:500]}"
    return ""


def run_one(name: str, chip: int) -> Result:
    """One run on one chip; an exception in it is a problem like others."""
    started = time.process_time()
    result = Result(name, chip)
    try:
        with tempfile.TemporaryDirectory() as folder:
            result.seen = RUNS[name](Path(folder), chip)
        result.problems = check(result.seen)
    except Exception as error:
        result.problems = [described(error)]
    result.seconds = time.process_time() - started
    return result


def print_row(result: Result) -> None:
    """One line of the table."""
    seen = result.seen
    cells = ["", "", "", "", ""]
    if seen is not None:
        most = max((step.launches.total() for step in seen.steps), default=0)
        cells = [len(seen.steps), most, len(seen.driver.variants), len(seen.late), len(seen.faults)]
    steps, launches, n_variants, late, waits = cells
    row = f"{result.run:<20}{f'sm_{result.chip}':>6}{steps:>7}{launches:>15}{n_variants:>10}{late:>6}{waits:>7}"
    print(f"{row}{result.seconds:>8.0f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chip", type=int, action="append", choices=CHIPS, help="only this one")
    parser.add_argument("--run", action="append", choices=RUNS, help="only this one")
    parser.add_argument("--compile", action="store_true", help="also compile what would have been launched")
    parser.add_argument("--json", type=Path, help="also write what was seen to a file")
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    variants, problems = [], []
    print(f"{'run':<20}{'chip':>6}{'steps':>7}{'launches/step':>15}{'variants':>10}{'late':>6}{'waits':>7}{'CPU s':>8}")
    for chip in arguments.chip or CHIPS:
        for name in arguments.run or RUNS:
            if chip not in ONLY_ON.get(name, (chip,)):
                continue
            result = run_one(name, chip)
            print_row(result)
            if result.seen is not None:
                variants += result.seen.driver.variants
            problems += [f"{name}, sm_{chip}: {problem}" for problem in result.problems]
    for chip in arguments.chip or CHIPS:
        problems += check_launches(chip)
    if arguments.compile:
        started = time.perf_counter()
        problems += compile_all(variants, os.cpu_count() or 1)
        n_variants = len({(variant.chip, variant.key()) for variant in variants})
        print(f"{n_variants} variants compiled in {time.perf_counter() - started:.0f} s")
    if arguments.json:
        arguments.json.write_text(json.dumps({"problems": problems}, indent=1), encoding="utf-8")
    print("\n".join(f"PROBLEM {problem}" for problem in problems) or "no problem")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
