"""One run from a validated configuration to the final adapter: everything around the loop."""

from __future__ import annotations

import gc
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import transformers

from ...instrument.judge.detect import Trouble
from ...instrument.messages import say
from ...instrument.read.row_log import RowsWriter
from ...instrument.read.store import MetricsLog, StatsWriter, write_sites
from ..checks.no_effect import without_effect
from ..checks.tips import tips
from ..collapse.handle import Decision, handle_collapse
from ..collapse.remedy import start_scale
from ..config.names import at_home
from ..config.schema import Config
from ..console import Console
from ..data.examples import Dataset
from ..data.load import load_data, with_format
from ..dry_run.outlook import outlook_of
from ..dry_run.preview import unit_name
from ..errors import Stopped, UserError, problem, reason, tell
from ..log.streams import Streams
from ..log.trackers import Trackers
from ..loop.checkpoint import checkpoints, drop_partial, restore, set_aside_after, step_of
from ..loop.components import Components, build
from ..loop.engine import Engine, OutOfMemory, PeerLost, check_hardware
from ..loop.run_log import RunLog
from ..loop.session import Session, Stop
from ..loop.train import leave, train
from ..loop.warm_up import warm_up
from ..model.classify import own_names
from ..model.fit import require_fit
from ..model.load import load_tokenizer, pad_token_id
from ..saved.state import Progress
from ..saved.whole import what_is_torn
from .finish import finish, is_complete
from .folder import family, fresh_folder, next_start, refuse_pipes, weights_fingerprint, write_config, write_env
from .hub import check_login
from .lock import Lock, refuse_if_running
from .resume import changed_settings, find_checkpoint, moved_lengths, other_processes, resume_from, with_heals


@dataclass(frozen=True)
class Launch:
    """What every start of a run has in common.

    Attributes:
        train_data, eval_data: the rows.
        pad_token_id: fills up short rows.
        resume: what --resume said.
        engine: the processes.
        console: says things to the user.
        stop: why it would end early.
        lock: of the run folder.
        opened: is told the run folder.
    """

    train_data: Dataset
    eval_data: Dataset | None
    pad_token_id: int
    resume: str | None
    engine: Engine
    console: Console
    stop: Stop
    lock: Lock
    opened: Callable[[Path], object]


def run(
    config: Config,
    resume: str | None,
    console: Console | None = None,
    opened: Callable[[Path], object] = lambda folder: None,
) -> int:
    """Trains and returns the exit code: 0 done, 3 stopped by a collapse, 128 + a signal with a checkpoint written.

    Args:
        console: says things to the user; None for that of the command.
        opened: is told the run folder as soon as it is known.

    Raises:
        UserError: data, model or checkpoint cannot be used; nothing was overwritten.
    """
    stop = Stop()
    engine = Engine()
    console = Console() if console is None else console
    console.silent = not engine.is_main
    try:
        return _run(config, resume, stop, engine, console, opened)
    finally:
        stop.end()


def _run(
    config: Config,
    resume: str | None,
    stop: Stop,
    engine: Engine,
    console: Console,
    opened: Callable[[Path], object],
) -> int:
    if config.training.max_hours is not None:
        stop.deadline = time.monotonic() + 3600 * config.training.max_hours
    transformers.logging.set_verbosity_error()
    check_hardware(config, engine.device)
    check_login(config)
    resume = resume_from(resume, config)
    warn_before(config, resume, engine, console)
    checkpoint = find_checkpoint(resume, config.training.output_dir, console) if resume is not None else None
    if engine.is_main:
        refuse_if_running([*family(config.training.output_dir), *([checkpoint.parent] if checkpoint else [])])
        refuse_pipes(checkpoint.parent if checkpoint else fresh_folder(config.training.output_dir))
    if checkpoint is not None:
        config = with_heals(config, checkpoint)
    tokenizer = load_tokenizer(config)
    data = load_data(config, tokenizer, console, own_names(config))
    n_rows = require_fit(config, tokenizer, data, console)
    config = with_format(config, data[0])
    launch = Launch(*data, pad_token_id(tokenizer, n_rows), resume, engine, console, stop, Lock(), opened)
    try:
        outcome = start(launch, config, checkpoint)
        while isinstance(outcome, Decision):  # a healed run goes on as a resumed one would
            gc.collect()
            if engine.any(bool(stop.signal)):
                console.line(say("end.interrupted_healed", checkpoint=outcome.checkpoint))
                outcome = 128 + (stop.signal or signal.SIGINT)
                break
            outcome = start(launch, outcome.config, outcome.checkpoint, healing=True)
    except Stopped as error:
        tell(error)
        return 1
    finally:
        launch.lock.release()
    engine.close()
    return outcome


def warn_before(config: Config, resume: str | None, engine: Engine, console: Console) -> None:
    """Says what of the configuration and the launch will have no effect."""
    if engine.lacks_processes:
        console.warn(say("engine.one_process"))
    for text in without_effect(config):
        console.warn(text)
    if config.training.ignore_data_skip and resume is None:
        reason = "training.resume_from_checkpoint=null"
        console.warn(say("config.no_effect", key="training.ignore_data_skip", reason=reason))


def start(launch: Launch, config: Config, checkpoint: Path | None, healing: bool = False) -> int | Decision:
    """Builds everything and trains from the checkpoint on, or from the beginning.

    Args:
        healing: whether this start is a run going on after a collapse.

    Returns:
        the exit code, or how to go on.
    """
    engine, console = launch.engine, launch.console
    components = build(config, engine, launch.train_data, launch.eval_data, launch.pad_token_id, console)
    progress = Progress()
    if checkpoint is not None:
        checkpoint, components, progress = go_on(components, checkpoint, None if healing else launch.resume, console)
        if is_complete(components, progress) and (checkpoint.parent / "adapter").is_dir():
            launch.opened(checkpoint.parent)
            console.line(say("resume.complete", folder=checkpoint.parent, step=progress.step, total=components.n_steps))
            return 0
    else:
        start_scale(components)
    progress.processes = engine.world_size
    # the main process's answer: another may look when the folder has just been made
    folder = checkpoint.parent if checkpoint else fresh_folder(config.training.output_dir)
    run_dir = engine.gather_objects(folder)[0]
    launch.opened(run_dir)
    launch.stop.guard()
    if engine.is_main:
        launch.lock.take(run_dir)
        if checkpoint is not None:
            drop_partial(run_dir)
            set_aside_after(run_dir, progress.step, progress.start)
    if checkpoint is not None:
        progress.start = engine.gather_objects(next_start(run_dir, progress.start) if engine.is_main else 0)[0]
    metrics = open_folder(run_dir, components, progress) if engine.is_main else None
    streams = open_streams(run_dir, components, progress, console)
    engine.barrier()
    if not healing:
        greet(launch, components, progress, run_dir, checkpoint)
        launch.stop.listen()
    trackers = Trackers(config, run_dir, console.warn) if engine.is_main else None
    log = RunLog(metrics, console, components, progress, streams, trackers)
    session = Session(components, progress, run_dir, log, console, launch.stop)
    warm_up(components)
    session.snapshots.keep(progress)
    with session:
        trouble = train_to_the_end(session)
    return finish(session) if trouble is None else handle_collapse(session, trouble)


def train_to_the_end(session: Session) -> Trouble | None:
    """Trains, and sums up a run that is complete; what went wrong, if something did.

    Raises:
        UserError: a batch did not fit into memory.
        Stopped: another process is gone, or the disk refuses what must be written.
    """
    try:
        trouble = train(session)
        if trouble is None and is_complete(session.components, session.progress) and session.components.engine.is_main:
            session.log.summary(session.components.plan.n_rows(session.progress.step), session.progress.step)
        return trouble
    except (OutOfMemory, PeerLost) as error:
        raise leave(session, error) from error


def go_on(
    components: Components, checkpoint: Path, resume: str | None, console: Console
) -> tuple[Path, Components, Progress]:
    """Restores a checkpoint, or where the newest of a run is another model's, the one before.

    Raises:
        UserError: it cannot be restored and no other one may be taken.
    """
    named = resume is not None and at_home(resume).resolve() == checkpoint.resolve()
    earlier = [path for path in checkpoints(checkpoint.parent) if step_of(path) < step_of(checkpoint)]
    changed = changed_settings(checkpoint, components.config)
    while True:
        try:
            components, progress = restore(components, checkpoint)
            changed += moved_lengths(checkpoint, components) + other_processes(progress, components.engine.world_size)
            break
        except UserError as error:
            earlier = [path for path in earlier if not what_is_torn(path)]
            if named or not earlier:
                raise
            console.warn(say("checkpoint.passed_over", folder=checkpoint, what=error.problems[0].error))
            checkpoint = earlier.pop()
    if changed:
        console.warn(say("resume.changed", keys=", ".join(changed)))
    if components.config.training.ignore_data_skip and resume is not None:
        progress.data_begins_after = progress.step
        components = replace(components, plan=replace(components.plan, begins_after=progress.step))
    return checkpoint, components, progress


def open_folder(run_dir: Path, components: Components, progress: Progress) -> MetricsLog:
    """Makes the run folder and writes down what the run is made of."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        write_config(run_dir, components.config)
        base = components.model.get_base_model()
        facts = {
            "start": progress.start,
            "device": str(components.engine.device),
            "processes": components.engine.world_size,
            "model": components.config.model.name_or_path,
            "revision": getattr(base.config, "_commit_hash", None) or components.config.model.revision,
            "data_fingerprint": components.plan.fingerprint(),
            "weights_fingerprint": weights_fingerprint(components.model),
            "eval_overlap": _overlap_of(components),
        }
        write_env(run_dir, facts)
        return MetricsLog(run_dir, progress.start)
    except OSError as error:
        raise UserError(problem("run.cannot_write", folder=run_dir, what=reason(error))) from error


def _overlap_of(components: Components) -> dict[str, Any] | None:
    """What evaluation and training rows have in common; null where nothing is evaluated."""
    data = components.eval_data
    return data.overlap.facts() if data is not None and data.overlap is not None else None


def open_streams(run_dir: Path, components: Components, progress: Progress, console: Console) -> Streams:
    """Writes sites.json and opens this start's streams of statistics, on the main process."""
    config, recorder, rows, stats = components.config, components.recorder, None, None
    if recorder is not None and components.engine.is_main:
        try:
            write_sites(run_dir, recorder.sites)
            stats = StatsWriter(run_dir, progress.start, len(recorder.sites))
            if recorder.rows is not None:
                n_fused = 2 * len(recorder.rows.modules)
                whole = n_fused == len(components.optimizer.gradients)
                rows = RowsWriter(run_dir, progress.start, recorder.rows.modules, whole)
        except OSError as error:
            raise UserError(problem("run.cannot_write", folder=run_dir, what=reason(error))) from error
    return Streams(config, console, stats, rows)


def greet(launch: Launch, components: Components, progress: Progress, run_dir: Path, checkpoint: Path | None) -> None:
    """The banner: what is trained on what, where it goes."""
    config, plan, console = components.config, components.plan, launch.console
    n_trained, n_all = components.model.get_nb_trainable_parameters()
    quantized = config.quantization.bnb_4bit_quant_type if config.quantization.load_in_4bit else ""
    console.line(
        say(
            "banner.model",
            model=config.model.name_or_path,
            storage=quantized or config.storage_dtype,
            compute=config.compute_dtype,
            device=components.engine.device,
            processes=components.engine.world_size,
        )
    )
    console.line(say("banner.lora", r=config.lora.r, trained=n_trained, all=n_all, share=100 * n_trained / n_all))
    supervised = sum(example.n_supervised for example in plan.dataset.examples)
    tokens = sum(len(example.input_ids) for example in plan.dataset.examples)
    values = {
        "source": plan.dataset.source,
        "rows": len(plan.dataset.examples),
        "eval_rows": len(components.eval_data.examples) if components.eval_data else 0,
        "steps": components.n_steps,
        "per_step": plan.units_per_step,
        "unit": unit_name(plan),
    }
    if config.is_classifier:
        console.line(say("banner.labelled", labels=len(config.data.labels or "1"), **values))
    else:
        console.line(say("banner.data", share=100 * supervised / tokens, **values))
    for tip in tips(config, outlook_of(config, plan, components.eval_data, components.engine.device)):
        console.warn(tip)
    if attention := components.loss.how_rows_attend(config.compute_dtype, config.data.cutoff_len):
        console.line(attention)
    if components.optimizer.waits:
        console.line(say("banner.optimizer_waits", optim=config.training.optim))
    if launch.resume is not None and checkpoint is None:
        console.line(say("banner.nothing_to_resume", output_dir=config.training.output_dir))
    elif checkpoint is not None:
        console.line(say("banner.resume", checkpoint=checkpoint, step=progress.step))
    elif run_dir != at_home(config.training.output_dir):
        console.line(say("banner.moved", taken=config.training.output_dir, folder=run_dir))
    console.line(say("banner.folder", folder=run_dir))
