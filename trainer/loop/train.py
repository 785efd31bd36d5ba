"""The training loop, to be read from top to bottom.

Loss of a step = sum over the supervised tokens of all its micro-batches on all processes / their count. With
adamw_torch_fused nothing in a step makes the host wait for the device (`python -m benchmarks.fake_cuda`): what is to be
known travels in one row of scalars through a ring and is written when it arrives.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from safetensors import SafetensorError

from ...instrument.judge.detect import Trouble
from ...instrument.messages import say
from ...instrument.record.ring import Ring
from ..config.schema import METRIC_DRIVEN
from ..console import Console
from ..data.batches import Plan, collate
from ..data.examples import Example
from ..errors import Stopped, UserError, problem
from ..model.load import autocast
from .best import best_step, metric_of, stops_early
from .checkpoint import NotFinite, Progress, save_checkpoint
from .components import Parts
from .engine import OutOfMemory, PeerLost, fits
from .evaluate import Evaluation, evaluate
from .lr_schedule import lr_table
from .optim import has_non_finite
from .run_log import ROW_FIELDS, RunLog, StepFacts, write_failed
from .snapshots import HEALTHY_EVERY, Healthy


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

    def end(self) -> None:
        """Gives the signals back to who had them."""
        while self._old:
            signal.signal(*self._old.popitem())

    def _received(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self.end()

    def wanted(self, reserve: float) -> bool:
        """Whether to stop now, keeping `reserve` seconds before the deadline."""
        return bool(self.signal) or time.monotonic() + reserve > self.deadline


def micro_batch_seed(seed: int, step: int, micro_batch: int, rank: int) -> int:
    """Seed of everything random in one micro-batch: any of them can be run again on its own."""
    digest = hashlib.sha256(f"{seed}-{step}-{micro_batch}-{rank}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def forward_backward(parts: Parts, step: int) -> torch.Tensor:
    """Accumulates the gradients of a step over its micro-batches and all processes; nothing is applied.

    Returns:
        float32 [2] on the device: the loss, and the number of micro-batches whose loss is not finite.
    """
    engine = parts.engine
    micro_batches = parts.plan.step(step)
    n_supervised = sum(example.n_supervised for examples in micro_batches for example in examples)
    totals = torch.zeros(2, device=engine.device)
    if parts.recorder:
        parts.recorder.begin_step(step)
    for index, own in enumerate(parts.plan.own(step, engine.rank)):
        if not own:
            continue
        with fits(own):
            loss_sum = micro_batch_loss(parts, step, index, own)
            loss = loss_sum / n_supervised
            (loss * parts.loss_scale.scale).backward()
        totals += torch.stack([loss.detach(), (~torch.isfinite(loss_sum.detach())).float()])
    engine.sum_([totals, *parts.optimizer.gradients])
    return totals


def micro_batch_loss(parts: Parts, step: int, index: int, examples: Sequence[Example]) -> torch.Tensor:
    """Loss sum, float32 [], of this process's rows in a micro-batch; everything random in it has a seed of its own."""
    torch.manual_seed(micro_batch_seed(parts.config.training.seed, step, index, parts.engine.rank))
    batch = collate(examples, parts.pad_token_id, parts.loss.padding_free).to(parts.engine.device)
    if parts.recorder:
        parts.recorder.begin_micro_batch()
    with autocast(parts.config, parts.engine.device):
        return parts.loss(batch)[0]


def train_step(parts: Parts, step: int) -> torch.Tensor:
    """One optimizer step.

    Returns:
        the row, float64 [len(ROW_FIELDS)] on the device.
    """
    loss_scale = parts.loss_scale.scale
    totals = forward_backward(parts, step)
    gradient_rows = parts.optimizer.gradient_rows()
    if parts.recorder:
        parts.recorder.finish_step(gradient_rows, parts.optimizer.gradients)
    latched = parts.latch.update(totals[0], has_non_finite(gradient_rows), parts.loss_scale.can_fall())
    if not any(parts.plan.step(step)):  # all its rows are in data.skip_rows
        totals[0] = torch.nan
    hold = latched | ~torch.isfinite(totals[0])
    grad_norm, found_inf = parts.optimizer.step(gradient_rows, loss_scale, hold)
    parts.loss_scale.update(found_inf, hold)
    values = {
        "loss": totals[0],
        "grad_norm": grad_norm,
        "loss_scale": loss_scale,
        "skipped": found_inf,
        "nonfinite_micro_batches": totals[1],
        "updates": parts.optimizer.updates,
        "latched": latched,
    }
    return torch.stack([values[name].double() for name in ROW_FIELDS])


def train(
    parts: Parts, progress: Progress, healthy: Healthy, run_dir: Path, log: RunLog, console: Console, stop: Stop
) -> Trouble | None:
    """Runs the remaining steps, evaluating and saving as the configuration says.

    Returns:
        None after the last step, or earlier if `stop` wants it; a checkpoint then holds the state reached. What went
        wrong, if something did: `progress`, adapter and optimizer then stand before the step that the latch held, or
        after the last step run if it was a trend that was seen.
    """
    training, engine = parts.config.training, parts.engine
    ring = Ring((len(ROW_FIELDS),), engine.device)
    parts.model.train()
    while progress.step < parts.n_steps:
        started = time.perf_counter()
        step = progress.step + 1
        if step % HEALTHY_EVERY == 1:
            healthy.keep(progress)
        try:
            ring.push(step, train_step(parts, step))
        except OutOfMemory as error:
            log.receive(ring, None, drain=True)
            raise leave(parts, progress, run_dir, error) from error
        progress.step = step
        log.expect(host_facts(parts.plan, step, time.perf_counter() - started))

        complete = step == parts.n_steps
        cut_short = not complete and engine.any(stop.wanted(reserve=log.seconds_to_stop()))
        evaluates = parts.eval_data is not None and parts.schedule.evaluates(step) and not cut_short
        saves = parts.schedule.saves(step) or cut_short
        # several processes must see a latched step at the same time; they have waited for each other already
        settles = evaluates or saves or complete or engine.world_size > 1
        trouble = log.receive(ring, parts.recorder, drain=settles)
        if trouble is not None:
            progress.step = log.last_step - 1 if trouble.latched else step
            return trouble
        if evaluates:
            log.evaluation(step, judge(parts, progress))
            is_best = best_step(training, progress.evaluations) == step
            saves |= is_best and (training.save_strategy == "best" or training.load_best_model_at_end)
        ends_early = evaluates and stops_early(training, progress.evaluations)
        if saves or ends_early:
            save(parts, progress, run_dir, log, console)
        if cut_short or ends_early:
            return None
    return None


def leave(parts: Parts, progress: Progress, run_dir: Path, error: OutOfMemory | PeerLost) -> UserError | Stopped:
    """Saves the state before a step that could not be run, if nobody has, and says what happened."""
    parts.optimizer.clear()
    checkpoint = run_dir / f"checkpoint-{progress.step}"
    if isinstance(error, PeerLost):
        time.sleep(2.0 * parts.engine.rank)  # the lowest rank that is left writes
    if not checkpoint.exists() and progress.step:
        with contextlib.suppress(NotFinite, OSError, SafetensorError):
            settings = parts.config.model_dump()
            save_checkpoint(run_dir, parts.model, parts.optimizer, parts.loss_scale, progress, settings, None)
    if isinstance(error, PeerLost):
        facts = {"rank": parts.engine.rank, "step": progress.step, "checkpoint": checkpoint}
        return Stopped(str(problem("run.peer_lost", **facts)))
    examples = error.examples
    kind = "run.out_of_memory_checkpointed" if parts.config.training.gradient_checkpointing else "run.out_of_memory"
    kind = "run.out_of_memory_evaluating" if error.evaluating else kind
    length, rows = max(len(e.input_ids) for e in examples), ", ".join(str(e.row) for e in examples)
    return UserError(problem(kind, n_rows=len(examples), length=length, rows=rows))


def judge(parts: Parts, progress: Progress) -> Evaluation:
    """Evaluates, remembers the metric, and lets a schedule that follows it set the learning rate."""
    assert parts.eval_data is not None
    training = parts.config.training
    evaluation = evaluate(parts.model, parts.loss, parts.eval_data, parts.config, parts.engine, parts.pad_token_id)
    progress.evaluations = [*progress.evaluations, (progress.step, metric_of(training, evaluation))]
    follow_metrics(parts, progress)
    return evaluation


def follow_metrics(parts: Parts, progress: Progress) -> None:
    """Sets the learning rate of a schedule that follows the evaluations."""
    if parts.config.training.lr_scheduler_type in METRIC_DRIVEN:
        metrics = [metric for _, metric in progress.evaluations]
        parts.optimizer.follow(lr_table(parts.config.training, parts.n_steps, metrics))


def host_facts(plan: Plan, step: int, step_seconds: float) -> StepFacts:
    """What the host knows of a step, over all processes."""
    examples = [example for examples in plan.step(step) for example in examples]
    return StepFacts(
        step=step,
        tokens=sum(len(example.input_ids) for example in examples),
        supervised_tokens=sum(example.n_supervised for example in examples),
        max_sequence_length=max((len(example.input_ids) for example in examples), default=0),
        step_seconds=step_seconds,
        rows=tuple(example.row for example in examples),
    )


def save(parts: Parts, progress: Progress, run_dir: Path, log: RunLog, console: Console) -> None:
    """Writes a checkpoint from the main process; one that is not finite is refused and said."""
    started = time.perf_counter()
    if parts.engine.is_main:
        training, settings = parts.config.training, parts.config.model_dump()
        keep = training.save_total_limit
        best = best_step(training, progress.evaluations) if training.load_best_model_at_end else None
        try:
            save_checkpoint(run_dir, parts.model, parts.optimizer, parts.loss_scale, progress, settings, keep, best)
        except NotFinite as error:
            console.warn(say("save.not_finite", step=progress.step, name=error))
        except (OSError, SafetensorError) as error:
            shutil.rmtree(run_dir / f"checkpoint-{progress.step}.tmp", ignore_errors=True)
            write_failed(parts.config, f"checkpoint-{progress.step}", OSError(str(error)))
            console.warn(say("save.failed", step=progress.step, what=error))
    parts.engine.barrier()
    log.saved(time.perf_counter() - started)
