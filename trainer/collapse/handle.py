"""A step went wrong: name what did it, keep the step, try remedies on it, and go on or stop.

    capsule -> diagnosis -> trials -> checkpoint of the last healthy state -> stop (exit 3), or settings to go on with

Going on is resuming: the healed run starts from the checkpoint written here, with changed settings, exactly as a user
would do by hand. Killed at any point, the run resumes from the last whole checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ...instrument.judge.detect import Diagnosis, Trouble
from ...instrument.messages import say
from ...instrument.record.capsule import incident_folder, write_capsule, write_diagnosis
from ..config.schema import Config
from ..config.settings import as_overrides, with_settings
from ..console import Console
from ..loop.checkpoint import NotFinite, Progress, save_checkpoint
from ..loop.components import Parts
from ..loop.snapshots import Copy, Healthy
from .diagnose import diagnose
from .remedy import Outcome, Remedy, Trial, attempt, candidates, listed, try_out
from .screen import Facts, show

EXIT_COLLAPSED = 3


@dataclass(frozen=True)
class Decision:
    """How a run goes on: settings, and the checkpoint they start from."""

    config: Config
    checkpoint: Path


def collapse(
    parts: Parts, progress: Progress, trouble: Trouble, healthy: Healthy, run_dir: Path, console: Console
) -> int | Decision:
    """Handles a step that went wrong.

    Args:
        progress: where the state stands: before the step that the latch held, or after a trend was seen.

    Returns:
        the exit code, or how to go on.
    """
    parts = replace(parts, recorder=parts.recorder if trouble.kind == "scale_underflow" else None)
    copy = healthy.newest(before=trouble.step)
    console.line(say("collapse.looking", step=trouble.step))
    diagnosis = diagnose(replace(parts, recorder=None), trouble)
    folder = incident_folder(run_dir, trouble.step, progress.start)
    live = healthy.copy(progress)
    kept = live if trouble.latched and trouble.kind is None else copy or live
    if parts.engine.is_main:
        write_capsule(folder, *capsule(parts, kept, trouble.step, progress.start))

    started = time.monotonic()
    again = attempt(replace(parts, recorder=None), trouble.step) if trouble.latched else None
    trials = list(_trials(parts, diagnosis, copy, live, healthy))
    seconds = time.monotonic() - started
    chosen = next((trial.remedy for trial in trials if trial.verified), None)
    policy = parts.config.precision.on_collapse
    goes_on = chosen is not None and policy != "stop" and len(progress.heals) < parts.config.precision.max_heals
    diagnosis.remedies = [as_json(trial) for trial in trials]

    back = chosen is not None and chosen.rolls_back
    state = copy if (back or not live.is_finite()) and copy is not None else live
    healthy.restore(state)
    before = replace(progress, **asdict(state.progress) | {"heals": progress.heals})
    config = parts.config
    if goes_on:
        assert chosen is not None
        config = with_settings(config, chosen.settings)
        before.heals = [*progress.heals, heal_record(parts.config, diagnosis, chosen)]
    checkpoint = _checkpoint(parts, before, config, run_dir, console)
    goes_on = goes_on and checkpoint is not None
    diagnosis.action = policy if goes_on else "stop"
    if parts.engine.is_main:
        write_diagnosis(folder, diagnosis.as_json())
        facts = Facts(diagnosis, trials, chosen, again, progress, before, checkpoint, folder, run_dir, seconds)
        show(facts, parts, console)
    parts.engine.barrier()
    if goes_on:
        assert checkpoint is not None
        return Decision(config, checkpoint)
    return EXIT_COLLAPSED


def _trials(parts: Parts, diagnosis: Diagnosis, copy: Copy | None, live: Copy, healthy: Healthy) -> Iterator[Trial]:
    """What each remedy did; of the kinds that come in several strengths the first that works ends its kind."""
    if parts.config.precision.on_collapse == "rollback" and diagnosis.kind not in ("dead_adapter", "divergence"):
        rows = list(dict.fromkeys(diagnosis.rows))
        remedy = Remedy("skip_rows", {"data.skip_rows": rows}, values={"rows": listed(rows)})
        yield Trial(remedy, Outcome(float("nan"), True), verified=True)
        return
    worked: set[str] = set()
    for remedy in candidates(parts, diagnosis, copy):
        if remedy.kind in worked:
            continue
        try:
            trial = try_out(parts, diagnosis, remedy, copy, healthy)
        except (torch.OutOfMemoryError, MemoryError):
            trial = Trial(remedy, Outcome(float("nan"), False), verified=False)
        if remedy.rolls_back and not trial.verified:
            healthy.restore(live)
        if trial.verified:
            worked.add(remedy.kind)
        yield trial


def as_json(trial: Trial) -> dict[str, Any]:
    """A trial as diagnosis.json holds it."""
    back = [f"rollback={trial.remedy.values['step']}"] if trial.remedy.rolls_back else []
    change = " ".join([*back, *as_overrides(trial.remedy.settings)])
    return {"change": change, "verified": trial.verified, "loss": trial.outcome.loss}


def heal_record(config: Config, diagnosis: Diagnosis, remedy: Remedy) -> dict[str, Any]:
    """What a checkpoint remembers of a collapse that the run went on from."""
    values = config.model_dump()

    def now(key: str) -> Any:
        section, _, name = key.partition(".")
        return values[section][name]

    return {
        "step": diagnosis.step,
        "kind": diagnosis.kind,
        "module": diagnosis.module,
        "settings": dict(remedy.settings),
        "before": {key: now(key) for key in remedy.settings},
    }


def _checkpoint(parts: Parts, progress: Progress, config: Config, run_dir: Path, console: Console) -> Path | None:
    """The state reached, on disk; None, and said, if it could not be written."""
    saved = False
    if parts.engine.is_main:
        try:
            settings = config.model_dump()
            save_checkpoint(run_dir, parts.model, parts.optimizer, parts.loss_scale, progress, settings, None)
            saved = True
        except NotFinite as error:
            console.warn(say("save.not_finite", step=progress.step, name=error))
        except (OSError, SafetensorError) as error:
            console.warn(say("save.failed", step=progress.step, what=error))
    # a folder of an earlier state may stand there under the same name
    return run_dir / f"checkpoint-{progress.step}" if parts.engine.any(saved) else None


def capsule(parts: Parts, state: Copy, step: int, start: int) -> tuple[dict[str, torch.Tensor], Mapping[str, Any]]:
    """Tensors and facts of a capsule: the state, and the rows of the steps from there to the step."""
    tensors = {f"adapter.{name}": value for name, value in state.adapter.items()}
    tensors |= {f"optimizer.{name}": value for name, value in state.optimizer.items()}
    tensors |= {f"loss_scale.{name}": value for name, value in state.loss_scale.items()}
    rows: dict[int, list[list[list[int]]]] = {}
    for number in range(state.progress.step + 1, step + 1):
        shares = parts.plan.shares(number)
        rows[number] = [[[example.row for example in own] for own in micro] for micro in shares]
        for example in (example for micro in shares for own in micro for example in own):
            tensors[f"row.{example.row}.input_ids"] = torch.from_numpy(example.input_ids.copy())
            tensors[f"row.{example.row}.supervised"] = torch.from_numpy(example.supervised.copy())
    facts = {
        "step": step,
        "start": start,
        "state_step": state.progress.step,
        "rows": rows,
        "n_steps": parts.n_steps,
        "steps_per_epoch": parts.plan.steps_per_epoch,
        "metrics": [metric for _, metric in state.progress.evaluations],
        "processes": parts.engine.world_size,
        "config": parts.config.model_dump(),
    }
    return tensors, facts
