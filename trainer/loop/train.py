"""The training loop, to be read from top to bottom.

Loss of a step = sum over the supervised tokens of all its micro-batches on all processes / their count. With
adamw_torch_fused nothing in a step makes the host wait for the device (`python -m benchmarks.fake_cuda`): what is to be
known travels in one row of scalars through a ring and is written when it arrives.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence

import torch

from ...instrument.judge.detect import Trouble
from ...instrument.read.eval_rows import EvaluationRows
from ...instrument.record.ring import Ring
from ...kernels.backend import segment_sums
from ..data.batches import StepRows, collate
from ..data.examples import Example
from ..errors import Stopped, UserError, problem
from ..model.load import autocast
from ..saved.state import Progress
from .best import best_step, follow_metrics, kept_steps, metric_of, stops_early
from .components import Components
from .engine import OutOfMemory, PeerLost, fits
from .evaluate import CutShort, Evaluation, ScoredEvaluation, evaluate
from .optim import has_non_finite
from .run_log import ROW_FIELDS, StepFacts
from .session import Session, Stop
from .snapshots import SNAPSHOT_EVERY


def micro_batch_seed(seed: int, step: int, micro_batch: int, rank: int) -> int:
    """Seed of everything random in one micro-batch: any of them can be run again on its own."""
    digest = hashlib.sha256(f"{seed}-{step}-{micro_batch}-{rank}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def forward_backward(components: Components, rows: StepRows) -> torch.Tensor:
    """Accumulates the gradients of a step over its micro-batches and all processes; nothing is applied.

    Returns:
        float32 [2] on the device: the loss, and the number of micro-batches whose loss is not finite.
    """
    totals = accumulate(components, rows)
    components.engine.sum_([totals, *components.optimizer.gradients])
    return totals


def accumulate(components: Components, rows: StepRows) -> torch.Tensor:
    """The same over this process's share alone."""
    engine, scale = components.engine, components.loss_scale.scale
    totals = torch.zeros(2, device=engine.device)
    if components.recorder:
        components.recorder.begin_step(rows.step)
    for index, own in enumerate(rows.own(engine.rank)):
        if not own:
            continue
        with fits(own):
            loss_sum = micro_batch_loss(components, rows.step, index, own)
            loss = loss_sum / rows.weight
            (loss * scale).backward()
        totals += torch.stack([loss.detach(), (~torch.isfinite(loss_sum.detach())).float()])
    return totals


def micro_batch_loss(components: Components, step: int, index: int, examples: Sequence[Example]) -> torch.Tensor:
    """Loss sum, float32 [], of this process's rows in a micro-batch; everything random in it has a seed of its own."""
    config, engine = components.config, components.engine
    torch.manual_seed(micro_batch_seed(config.training.seed, step, index, engine.rank))
    batch = collate(examples, components.pad_token_id, components.loss.padding_free).to(engine.device)
    components.patched.cut_at(batch.starts)
    rows = None
    if components.recorder:
        rows = components.recorder.rows
        components.recorder.begin_micro_batch(batch.starts)
    with autocast(config, engine.device):
        loss_sum, _, losses = components.loss.of_tokens(batch)
    if rows is not None:
        rows.losses(segment_sums(losses, [example.n_supervised for example in examples]))
    return loss_sum


def train_step(components: Components, rows: StepRows) -> torch.Tensor:
    """One optimizer step.

    Returns:
        the row, float64 [len(ROW_FIELDS)] on the device.
    """
    loss_scale, optimizer = components.loss_scale.scale, components.optimizer
    totals = forward_backward(components, rows)
    gradient_rows = optimizer.gradient_rows()
    if components.recorder:
        components.recorder.finish_step(gradient_rows, optimizer.gradients, scale=loss_scale)
    can_fall = components.loss_scale.can_fall()
    latched = components.latch.update(totals[0], has_non_finite(gradient_rows), can_fall)
    if not rows.examples:  # all its rows are in data.skip_rows
        totals[0] = torch.nan
    hold = latched | ~torch.isfinite(totals[0])
    grad_norm, found_inf = optimizer.step(gradient_rows, loss_scale, hold)
    components.loss_scale.update(found_inf, hold)
    values = {
        "loss": totals[0],
        "grad_norm": grad_norm,
        "loss_scale": loss_scale,
        "skipped": found_inf,
        "nonfinite_micro_batches": totals[1],
        "updates": optimizer.updates,
        "latched": latched,
    }
    return torch.stack([values[name].double() for name in ROW_FIELDS])


def train(session: Session) -> Trouble | None:
    """Runs the remaining steps, evaluating and saving as the configuration says.

    Returns:
        None after the last step, or earlier if the session is to stop; a checkpoint then holds the state reached. What
        went wrong, if something did: progress, adapter and optimizer then stand before the step that the latch held,
        or after the last step run if it was a trend that was seen.
    """
    components, progress, log = session.components, session.progress, session.log
    engine, schedule = components.engine, components.schedule
    ring = Ring((len(ROW_FIELDS),), engine.device)
    components.model.train()
    if progress.evaluation_due:
        progress.evaluation_due = False
        if after_step(session, components.eval_data is not None, saves=True):
            return None
    while progress.step < components.n_steps:
        step = progress.step + 1
        run_step(session, ring, step)

        complete = step == components.n_steps
        evaluates = components.eval_data is not None and schedule.evaluates(step)
        saves = schedule.saves(step)
        # several processes must see a latched step at the same time; they have waited for each other already
        settles = evaluates or saves or complete or engine.world_size > 1
        trouble = log.receive(ring, components.recorder, drain=settles)
        # a question that a lost process never answers: what is saved then has its line already
        cut_short = trouble is None and not complete and engine.any(session.stop.wanted(reserve=log.seconds_to_stop()))
        if cut_short and not settles:
            trouble = log.receive(ring, components.recorder, drain=True)
        if trouble is not None:
            progress.step = log.last_step - 1 if trouble.latched else step
            return trouble
        progress.evaluation_due = evaluates and cut_short
        if after_step(session, evaluates and not cut_short, saves or cut_short) or cut_short:
            return None
    return None


def after_step(session: Session, evaluates: bool, saves: bool) -> bool:
    """Evaluates and saves after a step; whether the run ends there, its evaluation cut short or no better for long.

    An evaluation that was cut short is made again when the run goes on: it may steer learning rate and end.
    """
    progress, training = session.progress, session.components.config.training
    progress.evaluation_due = progress.evaluation_due or evaluates
    ends = False
    if evaluates:
        try:
            evaluation, rows = judge(session.components, progress, session.stop)
        except CutShort:
            session.save()
            return True
        progress.evaluation_due = False
        session.log.evaluation(progress.step, evaluation)
        session.keep_rows(progress.step, rows)
        is_best = best_step(training, progress.evaluations) == progress.step
        saves |= progress.step in kept_steps(training, progress.evaluations)
        saves |= is_best and training.save_strategy == "best"
        ends = stops_early(training, progress.evaluations)
    if saves or ends:
        session.save()
    return ends


def run_step(session: Session, ring: Ring, step: int) -> None:
    """Runs a step, sends its row on its way and says what the host knows of it."""
    started = time.perf_counter()
    if step % SNAPSHOT_EVERY == 1:
        session.snapshots.keep(session.progress)
    rows = session.components.plan.rows(step)
    try:
        ring.push(step, train_step(session.components, rows))
    except OutOfMemory as error:
        trouble = session.log.receive(ring, None, drain=True)
        if trouble is not None and trouble.latched:  # the state is that before it: going on runs into it again
            session.progress.step = session.log.last_step - 1
        raise leave(session, error) from error
    session.progress.step = step
    session.log.expect(host_facts(rows, time.perf_counter() - started))


def leave(session: Session, error: OutOfMemory | PeerLost) -> UserError | Stopped:
    """Saves the state before a step that could not be run, if nobody has, and says what happened."""
    components, step = session.components, session.progress.step
    components.optimizer.clear()
    checkpoint = session.run_dir / f"checkpoint-{step}"
    lost = isinstance(error, PeerLost)
    if lost:
        time.sleep(2.0 * components.engine.rank)  # the lowest rank that is left writes
    if not checkpoint.exists() and step:
        if lost:
            session.console.silent = False
            session.log.write_for_lost(session.run_dir)
        session.write_checkpoint(last=True)
    if isinstance(error, PeerLost):
        kind = "run.peer_lost" if checkpoint.exists() else "run.peer_lost_unsaved"
        return Stopped(str(problem(kind, rank=components.engine.rank, step=step, checkpoint=checkpoint)))
    examples = error.examples
    recomputes = components.config.training.gradient_checkpointing
    kind = "run.out_of_memory_checkpointed" if recomputes else "run.out_of_memory"
    kind = "run.out_of_memory_evaluating" if error.evaluating else kind
    length, rows = max(len(e.input_ids) for e in examples), ", ".join(str(e.row) for e in examples)
    return UserError(problem(kind, n_rows=len(examples), length=length, rows=rows))


def judge(
    components: Components, progress: Progress, stop: Stop
) -> tuple[Evaluation | ScoredEvaluation, EvaluationRows]:
    """Evaluates, remembers the metric, and lets a schedule that follows it set the learning rate.

    Raises:
        CutShort: a signal came before the last batch.
    """
    evaluation, rows = evaluate(components, lambda: bool(stop.signal))
    metric = metric_of(components.config.training, evaluation)
    progress.evaluations = [*progress.evaluations, (progress.step, metric)]
    follow_metrics(components, progress.evaluations)
    return evaluation, rows


def host_facts(rows: StepRows, step_seconds: float) -> StepFacts:
    """What the host knows of a step, over all processes."""
    return StepFacts(
        step=rows.step,
        tokens=rows.n_tokens,
        supervised_tokens=rows.n_supervised,
        supervised_tokens_squared=rows.n_supervised_squared,
        max_sequence_length=rows.longest,
        step_seconds=step_seconds,
        rows=rows,
    )
