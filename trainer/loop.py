"""The training loop, to be read from top to bottom.

Loss of a step = sum over the supervised tokens of all its micro-batches on all processes / their count. With
adamw_torch_fused nothing in a step makes the host wait for the device: what is to be known travels in one row
of scalars through a ring and is written when it arrives.
"""

from __future__ import annotations

import hashlib
import shutil
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError

from ..instrument.loss_scale import LossScale
from ..instrument.messages import say
from ..instrument.recorder import Recorder
from ..instrument.ring import Ring
from .batches import Plan, collate
from .checkpoint import NotFinite, Progress, save_checkpoint
from .config import Config
from .console import Console
from .data import Dataset
from .engine import Engine
from .evaluate import evaluate
from .loss import SupervisedLoss
from .model import autocast
from .optim import Optimizer
from .run_log import ROW_FIELDS, RunLog, StepFacts


@dataclass(frozen=True)
class Parts:
    """Everything a step needs."""

    config: Config
    engine: Engine
    model: PeftModel
    loss: SupervisedLoss
    optimizer: Optimizer
    loss_scale: LossScale
    plan: Plan
    pad_token_id: int
    n_steps: int
    eval_data: Dataset | None = None
    recorder: Recorder | None = None


@dataclass
class Stop:
    """Why a run ends before its last step: a signal, or the clock."""

    deadline: float = float("inf")
    signal: int = 0
    _old: dict[int, Any] = field(default_factory=dict)

    def listen(self) -> None:
        """SIGINT and SIGTERM end the run after the step in flight; a second one ends it at once."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._old[number] = signal.signal(number, self._received)

    def _received(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        for listened, handler in self._old.items():
            signal.signal(listened, handler)

    def wanted(self, reserve: float) -> bool:
        """Whether to stop now, keeping `reserve` seconds before the deadline."""
        return bool(self.signal) or time.monotonic() + reserve > self.deadline


def micro_batch_seed(seed: int, step: int, micro_batch: int, rank: int) -> int:
    """Seed of everything random in one micro-batch: any of them can be run again on its own."""
    digest = hashlib.sha256(f"{seed}-{step}-{micro_batch}-{rank}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def train_step(parts: Parts, step: int) -> torch.Tensor:
    """One optimizer step.

    Returns:
        the row, float64 [len(ROW_FIELDS)] on the device.
    """
    engine, config = parts.engine, parts.config
    micro_batches = parts.plan.step(step)
    n_supervised = sum(example.n_supervised for examples in micro_batches for example in examples)
    loss_scale = parts.loss_scale.scale
    totals = torch.zeros(2, device=engine.device)
    recorder = parts.recorder
    if recorder:
        recorder.begin_step(step)

    for index, examples in enumerate(micro_batches):
        own = parts.plan.local(examples, engine.rank)
        if not own:
            continue
        torch.manual_seed(micro_batch_seed(config.training.seed, step, index, engine.rank))
        batch = collate(own, parts.pad_token_id).to(engine.device)
        if recorder:
            recorder.begin_micro_batch()
        with autocast(config, engine.device):
            loss_sum, _ = parts.loss(batch)
        loss = loss_sum / n_supervised
        (loss * loss_scale).backward()
        totals += torch.stack([loss.detach(), (~torch.isfinite(loss_sum.detach())).float()])

    engine.sum_([totals, *parts.optimizer.gradients])
    gradient_rows = parts.optimizer.gradient_rows()
    if recorder:
        recorder.finish_step(gradient_rows, parts.optimizer.gradients)
    grad_norm, found_inf = parts.optimizer.step(gradient_rows, loss_scale)
    parts.loss_scale.update(found_inf)
    values = {
        "loss": totals[0],
        "grad_norm": grad_norm,
        "loss_scale": loss_scale,
        "skipped": found_inf,
        "nonfinite_micro_batches": totals[1],
        "updates": parts.optimizer.updates,
    }
    return torch.stack([values[name].double() for name in ROW_FIELDS])


def train(parts: Parts, progress: Progress, run_dir: Path, log: RunLog, console: Console, stop: Stop) -> None:
    """Runs the remaining steps, evaluating and saving as the configuration says.

    Returns after the last step, or earlier if `stop` wants it; a checkpoint then holds the state reached.
    """
    training, engine = parts.config.training, parts.engine
    ring = Ring((len(ROW_FIELDS),), engine.device)
    parts.model.train()
    while progress.step < parts.n_steps:
        started = time.perf_counter()
        step = progress.step + 1
        ring.push(step, train_step(parts, step))
        progress.step = step
        log.expect(host_facts(parts.plan, step, time.perf_counter() - started))

        complete = step == parts.n_steps
        cut_short = not complete and engine.any(stop.wanted(reserve=log.seconds_to_stop()))
        eval_every = training.eval_steps or training.logging_steps
        evaluates = due(training.eval_strategy, eval_every, step, parts) and not cut_short
        saves = due(training.save_strategy, training.save_steps, step, parts) or cut_short
        settles = evaluates or saves or complete
        for done, values in ring.drain() if settles else ring.ready():
            log.step(done, values.tolist())
        log.statistics(parts.recorder, drain=settles)
        if evaluates and parts.eval_data is not None:
            log.evaluation(
                step,
                evaluate(parts.model, parts.loss, parts.eval_data, parts.config, engine, parts.pad_token_id),
            )
        if saves:
            save(parts, progress, run_dir, log, console)
        if cut_short:
            return


def due(strategy: str, every: int, step: int, parts: Parts) -> bool:
    """Whether something that happens by `strategy` happens after this step; the last step always counts."""
    if strategy == "no":
        return False
    interval = every if strategy == "steps" else parts.plan.steps_per_epoch
    return step % interval == 0 or step == parts.n_steps


def host_facts(plan: Plan, step: int, step_seconds: float) -> StepFacts:
    """What the host knows of a step, over all processes."""
    examples = [example for examples in plan.step(step) for example in examples]
    return StepFacts(
        step=step,
        tokens=sum(len(example.input_ids) for example in examples),
        supervised_tokens=sum(example.n_supervised for example in examples),
        max_sequence_length=max(len(example.input_ids) for example in examples),
        step_seconds=step_seconds,
        rows=tuple(example.row for example in examples),
    )


def save(parts: Parts, progress: Progress, run_dir: Path, log: RunLog, console: Console) -> None:
    """Writes a checkpoint from the main process; one that is not finite is refused and said."""
    started = time.perf_counter()
    if parts.engine.is_main:
        keep = parts.config.training.save_total_limit
        settings = parts.config.model_dump()
        try:
            save_checkpoint(run_dir, parts.model, parts.optimizer, parts.loss_scale, progress, settings, keep)
        except NotFinite as error:
            console.warn(say("save.not_finite", step=progress.step, name=error))
        except (OSError, SafetensorError) as error:
            shutil.rmtree(run_dir / f"checkpoint-{progress.step}.tmp", ignore_errors=True)
            console.warn(say("save.failed", step=progress.step, what=error))
    parts.engine.barrier()
    log.saved(time.perf_counter() - started)
