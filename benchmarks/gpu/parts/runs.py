"""Real runs through the command line, side by side: random four-layer models, real rows, evaluation, SIGKILL, resuming.

whole     both families in fp16, bf16 and NF4 with checkpointing, evaluated twice: exit code 0, every loss finite, the
          last below the first; the first losses in fp16 beside those of the same run in float32 on the CPU
killed    a run that SIGKILL ended and `--resume auto` finished, beside runs that nothing disturbed: the same adapter
          bit by bit with eager attention and fixed cuBLAS workspaces, else no further away than those are from each
          other
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..context import ROOT, Context
from ..models import FAMILIES, SMALL, TINY, TRAINED, Settings, model_folder, settings, write_settings
from . import SAME_PRODUCTS

CLI = (sys.executable, "-m", "lora_train.trainer.cli")
UNDISTURBED = 3
FIRST_STEPS = 3
# fp16 against float32 at the first steps, of a loss of about 6: a 16-bit model's logits are off by some 2^-9
FIRST_LOSS_TOLERANCE = 0.02
ON_CPU = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "2"}


@dataclass(frozen=True)
class Run:
    """One run: its configuration file, its folder, and the environment it gets."""

    config: Path
    folder: Path
    variables: dict[str, str]

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of its training steps."""
        return [row for row in self.lines() if "learning_rate" in row]

    def lines(self) -> list[dict[str, Any]]:
        path = self.folder / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []

    def adapter(self) -> Path:
        return self.folder / "adapter" / "adapter_model.safetensors"


@dataclass(frozen=True)
class Bench:
    """Where runs are written, and how long they are."""

    context: Context
    n_steps: int
    every: int

    def make(self, name: str, family: str, precision: str, *, eager: bool = False, **sections: Any) -> Run:
        """Writes the configuration of a run."""
        context = self.context
        size = TINY if context.dry else SMALL
        folder = context.folder / name
        how: Settings = {
            "training": {"max_steps": self.n_steps, "save_steps": self.every, "logging_steps": 1, "seed": 1},
            "model": {"attn_implementation": "eager"} if eager else {},
        }
        for section, values in sections.items():
            how.setdefault(section, {}).update(values)
        values = settings(model_folder(context.work, family, size), folder, precision, **how)
        return Run(write_settings(context.folder / f"{name}.yaml", values), folder, SAME_PRODUCTS if eager else {})

    def start(self, run: Run, *words: str) -> subprocess.Popen:
        """Starts the command; what it prints goes to a file beside its folder."""
        with run.folder.with_suffix(".log").open("ab") as log:
            return subprocess.Popen(
                [*CLI, "--config", str(run.config), *words], cwd=ROOT, env={**os.environ, **run.variables},
                stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def finish(self, run: Run, *words: str) -> None:
        """Runs it to its end and checks the exit code."""
        process = self.start(run, *words)
        try:
            code: int | None = process.wait(max(1.0, self.context.seconds_left))
        except subprocess.TimeoutExpired:
            process.kill()
            code = None
        self.context.check(code == 0, f"{run.folder.name}: exit code {code}")
        if code != 0:
            print(run.folder.with_suffix(".log").read_text(encoding="utf-8", errors="replace")[-3000:], flush=True)

    def interrupted(self, run: Run) -> None:
        """Kills it by SIGKILL after its first checkpoint and lets `--resume auto` finish it."""
        process = self.start(run)
        first = run.folder / f"checkpoint-{self.every}" / "trainer_state.json"
        while not first.exists() and process.poll() is None and self.context.seconds_left > 0:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        code = process.wait()
        told = f"{run.folder.name}: killed after {len(run.metrics())} of {self.n_steps} steps (exit code {code})"
        self.context.check(code == -signal.SIGKILL and not run.adapter().exists(), told)
        self.finish(run, "--resume", "auto")


def run(context: Context) -> str:
    """Starts all of them at once, two at a time in a dry run."""
    bench = Bench(context, 6, 2) if context.dry else Bench(context, 60, 10)
    families = FAMILIES[:1] if context.dry else FAMILIES
    evaluated = {"training": {"eval_strategy": "steps", "eval_steps": bench.n_steps // 2}, "data": {"eval_limit": 8}}
    cells = [(f, p) for f in FAMILIES for p in TRAINED]
    if context.dry:
        cells = [("gpt_neox", "nf4")]
    whole = {cell: bench.make("-".join(cell), *cell, **evaluated) for cell in cells}
    near = {f: pair(bench, f) for f in families}
    same = [bench.make(f"same-{i}", "llama", "fp16", eager=True) for i in range(2)]
    free = [bench.make(f"free-{i}", "gpt_neox", "fp16") for i in range((1 if context.dry else UNDISTURBED) + 1)]
    finished = [*whole.values(), *(run for runs in near.values() for run in runs), *same[:-1], *free[:-1]]
    with ThreadPoolExecutor(2 if context.dry else len(finished) + 2) as pool:
        jobs = [pool.submit(bench.interrupted, run) for run in (same[-1], free[-1])]
        jobs += [pool.submit(bench.finish, run) for run in finished]
        for job in jobs:
            job.result()
    for cell, one in whole.items():
        look_at(context, " ".join(cell), one)
    for family, (fp16, fp32) in near.items():
        first_losses(context, family, fp16, fp32)
    compare_killed(context, same, free)
    return f"{len(finished) + 2} runs of {bench.n_steps} steps, 2 of them killed"


def pair(bench: Bench, family: str) -> tuple[Run, Run]:
    """The same run in fp16 on the device and in float32 on the CPU; without dropout, whose masks differ there."""
    short = {"training": {"max_steps": FIRST_STEPS, "save_strategy": "no"}, "lora": {"lora_dropout": 0.0}}
    fp16 = bench.make(f"near-{family}", family, "fp16", **short)
    fp32 = bench.make(f"near-{family}-cpu", family, "fp32", **short)
    return fp16, Run(fp32.config, fp32.folder, ON_CPU)


def look_at(context: Context, name: str, run: Run) -> None:
    """Every loss finite, the last below the first, two evaluations, statistics of every step."""
    losses = [row["loss"] for row in run.metrics()]
    evaluations = [row["eval_loss"] for row in run.lines() if "eval_loss" in row]
    finite = all(loss is not None for loss in [*losses, *evaluations])
    context.check(bool(losses) and finite, f"{name}: losses are finite: {losses}")
    context.check(len(evaluations) == 2, f"{name}: evaluations {evaluations}")
    if not (losses and finite and evaluations):
        return
    third = len(losses) // 3
    context.check(sum(losses[-third:]) < sum(losses[:third]), f"{name}: the loss falls: {losses}")
    seconds = sorted(row["step_seconds"] for row in run.metrics())[len(losses) // 2]
    context.number(**{name: {"first": losses[0], "last": losses[-1], "eval": evaluations, "step_seconds": seconds}})
    context.line(f"{name:<14} loss {losses[0]:.3f} -> {losses[-1]:.3f}, eval {evaluations[-1]:.3f}, "
                 f"{1e3 * seconds:.1f} ms a step")  # fmt: skip


def first_losses(context: Context, family: str, fp16: Run, fp32: Run) -> None:
    """The device's first losses beside those of the CPU."""
    both = [(a["loss"], b["loss"]) for a, b in zip(fp16.metrics(), fp32.metrics(), strict=False)]
    far = max((abs(a / b - 1) for a, b in both if a is not None), default=float("inf"))
    context.number(**{f"{family}_off_cpu": far})
    context.check(len(both) == FIRST_STEPS and far < FIRST_LOSS_TOLERANCE,
                  f"{family}: first losses, device and CPU: {both}")  # fmt: skip
    context.line(f"{family:<14} first {len(both)} losses are within {far:.2%} of float32 on the CPU")


def compare_killed(context: Context, same: list[Run], free: list[Run]) -> None:
    """The adapters of runs that were killed and resumed, beside those of runs that were not."""
    if not all(run.adapter().exists() for run in (*same, *free)):
        context.check(False, "a run that was to be compared left no adapter")
        return
    equal = same[0].adapter().read_bytes() == same[1].adapter().read_bytes()
    losses = [[(row["step"], row["loss"]) for row in run.metrics()] for run in same]
    context.check(equal and losses[0] == losses[1], f"resumed, fixed order: the same bits; apart {apart(*same)}")
    whole, killed = free[:-1], free[-1]
    between = max((apart(a, b) for a in whole for b in whole), default=0.0)
    nearest = min(apart(one, killed) for one in whole)
    context.number(same_bits=equal, undisturbed_apart=between, resumed_apart=nearest)
    context.check(nearest <= between, f"resumed, defaults: {nearest} from the nearest undisturbed run, {between} apart")
    context.line(f"resumed after SIGKILL: {'the same bits' if equal else 'OTHER BITS'} in a fixed order; with defaults "
                 f"{nearest:.3g} apart, undisturbed runs {between:.3g}")  # fmt: skip


def apart(one: Run, other: Run) -> float:
    """The largest difference of two adapters' values."""
    from safetensors.torch import load_file

    left, right = load_file(one.adapter()), load_file(other.adapter())
    return max(float((value - right[name]).abs().max()) for name, value in left.items())
