"""The end of a run: the adapter that counts, where it lies, and the exit code."""

from __future__ import annotations

import math
import shlex
from pathlib import Path

from safetensors import SafetensorError

from ...instrument.messages import say
from ...instrument.read.compact import compact as compact_stats
from ...instrument.read.row_log import ROWS, compact_rows
from ...instrument.read.store import STATS
from ..config.schema import Config
from ..console import compact, duration
from ..errors import problem
from ..loop.best import best_step, stops_early
from ..loop.checkpoint import (
    NotFinite,
    checkpoints,
    commit,
    load_adapter,
    partial_folder,
    save_adapter,
    set_aside,
    step_of,
)
from ..loop.components import Components
from ..loop.session import Session
from ..saved.state import Progress
from ..saved.whole import what_is_torn
from .hub import push
from .model_card import describe

ENOUGH = 5
"""Evaluations from which on one of them can be told to be the best."""


def is_complete(components: Components, progress: Progress) -> bool:
    """Whether a run has nothing left to do."""
    if progress.evaluation_due:
        return False
    return progress.step >= components.n_steps or stops_early(components.config.training, progress.evaluations)


def finish(session: Session) -> int:
    """Writes the final adapter of a complete run, says where things are, and gives the exit code."""
    components, progress, stop = session.components, session.progress, session.stop
    complete, code = is_complete(components, progress), 0
    if not complete:
        session.console.line(interrupted(session.run_dir, progress.step, components.n_steps))
    elif components.engine.is_main:
        code = write_result(session)
    components.engine.barrier()
    return code if complete or not stop.signal else 128 + stop.signal


def interrupted(run_dir: Path, step: int, total: int) -> str:
    """One line: where the run stopped, and what of it is on the disk, which may have refused the last checkpoint."""
    folder, config = (shlex.quote(str(path)) for path in (run_dir, run_dir / "config.yaml"))
    values = {"step": step, "total": total, "folder": folder, "config": config}
    kept = checkpoints(run_dir)
    if not kept:
        return say("end.interrupted_empty", **values)
    if step_of(kept[-1]) != step:
        return say("end.interrupted_behind", **values, kept=step_of(kept[-1]))
    return say("end.interrupted", **values)


def write_result(session: Session) -> int:
    """Writes the final or best adapter, compacts the statistics, uploads it; 0, or 1 where one of them failed."""
    components, progress, run_dir, console = session.components, session.progress, session.run_dir, session.console
    training, folder = components.config.training, run_dir / "adapter"
    try:
        best = best_step(training, progress.evaluations) if training.load_best_model_at_end else None
        if best is not None and best != progress.step:
            if what := what_is_torn(run_dir / f"checkpoint-{best}"):
                console.warn(say("end.no_best", step=best, what=what))
            else:
                load_adapter(components.model, run_dir / f"checkpoint-{best}")
                console.line(say("end.best", step=best, metric=training.metric_for_best_model))
        write_adapter(components, progress, folder)
    except NotFinite as error:
        console.warn(say("save.not_finite", step=progress.step, name=error))
        return 1
    except (OSError, SafetensorError) as error:
        kept = checkpoints(run_dir)
        sentence = "end.cannot_write" if kept else "end.cannot_write_empty"
        console.line(str(problem(sentence, folder=folder, what=error, kept=step_of(kept[-1]) if kept else 0)))
        return 1
    compact_statistics(session)
    if progress.step < components.n_steps:
        console.line(say("end.early", step=progress.step, patience=training.early_stopping_patience))
    seconds = duration(progress.train_seconds)
    console.line(say("end.done", steps=progress.step, time=seconds, loss=compact(progress.final_loss)))
    console.line(say("end.adapter", folder=folder))
    console.line(say("end.look", folder=shlex.quote(str(run_dir))))
    console.line(next_step(components.config, progress, run_dir))
    if progress.heals:
        what = "; ".join(f"{heal['step']} {heal['kind']} {heal['module'] or ''}".rstrip() for heal in progress.heals)
        console.line(say("end.healed", n=len(progress.heals), what=what))
    return push(folder, components.config, console) if training.push_to_hub else 0


def next_step(config: Config, progress: Progress, run_dir: Path) -> str:
    """One line: what to do next, and why that."""
    training, folder, n = config.training, shlex.quote(str(run_dir)), len(progress.evaluations)
    measured = [step for step, value in progress.evaluations if math.isfinite(value)]
    best = best_step(training, progress.evaluations)
    if progress.heals:
        return say("end.next_healed", folder=folder, n=len(progress.heals))
    if n < 2 and training.eval_strategy != "no" and (config.data.eval or config.data.eval_fraction):
        command = f"evaluate {folder} FILE" if config.is_classifier else f"chat {folder}"
        return say("end.next_seldom", command=command, n=n, every=max(1, progress.step // ENOUGH))
    if best is None or len(measured) < 2:
        return say("end.next_unmeasured" if config.is_classifier else "end.next_unmeasured_chat", folder=folder)
    values = {"folder": folder, "metric": training.metric_for_best_model, "best": best, "last": measured[-1]}
    if best < measured[-1]:
        return say("end.next_past_best", **values)
    return say("end.next_longer", **values, steps=2 * progress.step)


def write_adapter(components: Components, progress: Progress, folder: Path) -> None:
    """The adapter with its tokenizer and card, whole or not at all; one of an earlier start is set aside."""
    with partial_folder(folder) as partial:
        save_adapter(components.model, partial)
        describe(partial, components.config, progress.final_loss)
        if folder.exists():
            set_aside(folder, max(progress.start - 1, 0))
        commit(partial, folder)


def compact_statistics(session: Session) -> None:
    """Makes the statistics small; what the disk refuses stays as it was recorded."""
    recorder = session.components.recorder
    if recorder is None:
        return
    try:
        compact_stats(session.run_dir)
        compact_rows(session.run_dir)
    except OSError as error:
        for partial in [*(session.run_dir / STATS).glob("*.tmp"), *(session.run_dir / ROWS).glob("*.tmp")]:
            partial.unlink(missing_ok=True)
        session.console.warn(say("end.not_compacted", what=error))
    if recorder.dropped:
        session.console.warn(say("instrument.dropped", count=recorder.dropped))
