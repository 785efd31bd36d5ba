"""One run from a validated configuration to the final adapter: everything around the loop."""

from __future__ import annotations

import gc
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import transformers

from ...instrument.messages import say
from ...instrument.read.store import MetricsLog, StatsWriter, write_sites
from ..checks.no_effect import without_effect
from ..collapse.handle import Decision, collapse
from ..collapse.remedy import start_scale
from ..config.schema import Config
from ..console import Console
from ..data.examples import Dataset
from ..data.load import load_data, with_format
from ..dry_run.preview import unit_name
from ..errors import Stopped, UserError, problem
from ..log.trackers import Trackers
from ..loop.checkpoint import Progress, checkpoints, set_aside_after, step_of
from ..loop.components import Parts, build
from ..loop.engine import Engine, OutOfMemory, PeerLost, check_hardware
from ..loop.restore import restore
from ..loop.run_log import RunLog
from ..loop.snapshots import Healthy
from ..loop.train import Stop, leave, train
from ..loop.warm_up import warm_up
from ..model.load import load_tokenizer, pad_token_id
from .finish import finish, is_complete
from .folder import family, fresh_folder, write_config, write_env
from .hub import check_login
from .lock import Lock, refuse_if_running
from .resume import changed_settings, find_checkpoint, wanted, what_is_torn, with_heals


def run(config: Config, resume: str | None) -> int:
    """Trains and returns the exit code: 0 done, 3 stopped by a collapse, 130/143 interrupted with a checkpoint written.

    Raises:
        UserError: data, model or checkpoint cannot be used; nothing was overwritten.
    """
    stop = Stop()
    if config.training.max_hours is not None:
        stop.deadline = time.monotonic() + 3600 * config.training.max_hours
    transformers.logging.set_verbosity_error()
    engine = Engine()
    console = Console(silent=not engine.is_main)
    check_hardware(config, engine.device)
    check_login(config)
    if engine.lacks_processes:
        console.warn(say("engine.one_process"))
    resume = wanted(resume, config)
    for text in without_effect(config):
        console.warn(text)
    if config.training.ignore_data_skip and resume is None:
        console.warn(say("config.no_effect", key="training.ignore_data_skip", reason="training.resume_from_checkpoint"))
    checkpoint = find_checkpoint(resume, config.training.output_dir, console) if resume else None
    if engine.is_main:
        refuse_if_running([*family(config.training.output_dir), *([checkpoint.parent] if checkpoint else [])])
    if checkpoint is not None:
        config = with_heals(config, checkpoint)
    tokenizer = load_tokenizer(config)
    data = load_data(config, tokenizer, console)
    config = with_format(config, data[0])
    source = Source(data[0], data[1], pad_token_id(tokenizer), resume)
    lock = Lock()
    try:
        outcome = start(config, checkpoint, source, engine, console, stop, lock)
        while isinstance(outcome, Decision):  # a healed run goes on as a resumed one would
            gc.collect()
            outcome = start(outcome.config, outcome.checkpoint, source, engine, console, stop, lock, healing=True)
    except Stopped as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        stop.end()
        lock.release()
    engine.close()
    return outcome


@dataclass(frozen=True)
class Source:
    """What every start of a run has in common: the rows, the padding, and what --resume said."""

    train_data: Dataset
    eval_data: Dataset | None
    pad_token_id: int
    resume: str | None


def start(
    config: Config,
    checkpoint: Path | None,
    source: Source,
    engine: Engine,
    console: Console,
    stop: Stop,
    lock: Lock,
    healing: bool = False,
) -> int | Decision:
    """Builds everything and trains from the checkpoint on, or from the beginning.

    Args:
        healing: whether this start is a run going on after a collapse.

    Returns:
        the exit code, or how to go on.
    """
    parts = build(config, engine, source.train_data, source.eval_data, source.pad_token_id, console)
    progress = Progress()
    if checkpoint is not None:
        checkpoint, parts, progress = go_on(parts, checkpoint, None if healing else source.resume, console)
        if is_complete(parts, progress) and (checkpoint.parent / "adapter").is_dir():
            console.line(say("resume.complete", folder=checkpoint.parent, step=progress.step, total=parts.n_steps))
            return 0
    else:
        start_scale(parts)
    # the main process's answer: another may look when the folder has just been made
    run_dir = engine.gather_objects(checkpoint.parent if checkpoint else fresh_folder(config.training.output_dir))[0]
    if engine.is_main:
        lock.take(run_dir)
        if checkpoint is not None:
            set_aside_after(run_dir, progress.step, progress.start)
    progress.start += checkpoint is not None
    metrics = open_folder(run_dir, parts, progress) if engine.is_main else None
    stats = open_stats(run_dir, parts, progress) if engine.is_main else None
    engine.barrier()
    if not healing:
        greet(parts, progress, run_dir, checkpoint, source.resume, console)
        stop.listen()
    trackers = Trackers(config, run_dir, console.warn) if engine.is_main else None
    log = RunLog(metrics, console, parts, progress, stats, trackers)
    warm_up(parts)
    healthy = Healthy(parts.model, parts.optimizer, parts.loss_scale)
    healthy.keep(progress)
    console.begin(progress.step, parts.n_steps)
    try:
        with parts.recorder.active() if parts.recorder else nullcontext():
            trouble = train(parts, progress, healthy, run_dir, log, console, stop)
        complete = trouble is None and is_complete(parts, progress)
        if complete and engine.is_main:
            log.summary(parts.plan.n_rows(progress.step), progress.step)
    except (OutOfMemory, PeerLost) as error:
        raise leave(parts, progress, run_dir, error) from error
    finally:
        console.end()
        log.close()
    if trouble is not None:
        return collapse(parts, progress, trouble, healthy, run_dir, console)
    return finish(parts, progress, run_dir, console, stop)


def go_on(parts: Parts, checkpoint: Path, resume: str | None, console: Console) -> tuple[Path, Parts, Progress]:
    """Restores a checkpoint, or where the newest of a run is another model's, the one before.

    Raises:
        UserError: it cannot be restored and no other one may be taken.
    """
    named = resume is not None and Path(resume).expanduser().resolve() == checkpoint.resolve()
    earlier = [path for path in checkpoints(checkpoint.parent) if step_of(path) < step_of(checkpoint)]
    changed = changed_settings(checkpoint, parts.config)
    while True:
        try:
            parts, progress = restore(parts, checkpoint)
            break
        except UserError as error:
            earlier = [path for path in earlier if not what_is_torn(path)]
            if named or not earlier:
                raise
            console.warn(say("checkpoint.passed_over", folder=checkpoint, what=error.problems[0].error))
            checkpoint = earlier.pop()
    if changed:
        console.warn(say("resume.changed", keys=", ".join(changed)))
    if parts.config.training.ignore_data_skip and resume is not None:
        progress.data_begins_after = progress.step
        parts = replace(parts, plan=replace(parts.plan, begins_after=progress.step))
    return checkpoint, parts, progress


def open_folder(run_dir: Path, parts: Parts, progress: Progress) -> MetricsLog:
    """Makes the run folder and writes down what the run is made of."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        write_config(run_dir, parts.config)
        base = parts.model.get_base_model()
        facts = {
            "start": progress.start,
            "device": str(parts.engine.device),
            "processes": parts.engine.world_size,
            "model": parts.config.model.name_or_path,
            "revision": getattr(base.config, "_commit_hash", None) or parts.config.model.revision,
            "data_fingerprint": parts.plan.fingerprint(),
        }
        write_env(run_dir, facts)
        return MetricsLog(run_dir, progress.start)
    except OSError as error:
        raise UserError(problem("run.cannot_write", folder=run_dir, what=error.strerror)) from error


def open_stats(run_dir: Path, parts: Parts, progress: Progress) -> StatsWriter | None:
    """Writes sites.json and opens this start's stream of statistics."""
    if parts.recorder is None:
        return None
    write_sites(run_dir, parts.recorder.sites)
    return StatsWriter(run_dir, progress.start, len(parts.recorder.sites))


def greet(
    parts: Parts,
    progress: Progress,
    run_dir: Path,
    checkpoint: Path | None,
    resume: str | None,
    console: Console,
) -> None:
    """The banner: what is trained on what, where it goes."""
    config, plan = parts.config, parts.plan
    n_trained, n_all = parts.model.get_nb_trainable_parameters()
    quantized = config.quantization.bnb_4bit_quant_type if config.quantization.load_in_4bit else ""
    console.line(
        say(
            "banner.model",
            model=config.model.name_or_path,
            storage=quantized or config.storage_dtype,
            compute=config.compute_dtype,
            device=parts.engine.device,
            processes=parts.engine.world_size,
        )
    )
    console.line(say("banner.lora", r=config.lora.r, trained=n_trained, all=n_all, share=100 * n_trained / n_all))
    supervised = sum(example.n_supervised for example in plan.dataset.examples)
    tokens = sum(len(example.input_ids) for example in plan.dataset.examples)
    console.line(
        say(
            "banner.data",
            source=plan.dataset.source,
            rows=len(plan.dataset.examples),
            eval_rows=len(parts.eval_data.examples) if parts.eval_data else 0,
            share=100 * supervised / tokens,
            steps=parts.n_steps,
            per_step=plan.units_per_step,
            unit=unit_name(plan),
        )
    )
    if attention := parts.loss.how_rows_attend(config.compute_dtype, config.data.cutoff_len):
        console.line(attention)
    if parts.optimizer.waits:
        console.line(say("banner.optimizer_waits", optim=config.training.optim))
    if resume is not None and checkpoint is None:
        console.line(say("banner.nothing_to_resume", output_dir=config.training.output_dir))
    elif checkpoint is not None:
        console.line(say("banner.resume", checkpoint=checkpoint, step=progress.step))
    elif run_dir != Path(config.training.output_dir).expanduser():
        console.line(say("banner.moved", taken=config.training.output_dir, folder=run_dir))
    console.line(say("banner.folder", folder=run_dir))
