"""`lora-train replay RUN --step N`: runs a recorded step again and shows what the run recorded and what comes out now.

The state comes from the incident's capsule, else from the nearest checkpoint before the step, from which the steps in
between are run again, else from the beginning. On the same machine, threads and versions loss and every recorded
statistic are the same to the last bit; elsewhere the largest deviation is printed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import transformers

from ...instrument.judge.detect import Trouble
from ...instrument.messages import say
from ...instrument.read.store import COLUMNS, FLOAT_COLUMNS, METRICS, rounded
from ..checks.own_code import without_code
from ..config.schema import Config
from ..config.settings import Settings, with_settings
from ..console import Console, compact
from ..data.examples import Dataset
from ..data.load import load_data
from ..data.sources import source_name
from ..errors import UserError, problem
from ..loop.checkpoint import checkpoints, differing, restore, step_of, under
from ..loop.components import Components, build, loss_scale_of
from ..loop.engine import Engine
from ..loop.lr_schedule import lr_table
from ..loop.snapshots import Snapshot, Snapshots
from ..loop.train import train_step
from ..model.load import load_tokenizer, pad_token_id, trainable
from ..saved.state import Progress, Torn, read_state
from ..saved.whole import what_is_torn
from .diagnose import diagnose
from .extract import dump, extract
from .recorded import Capsule, RecordedPlan, capsules, read_capsule, statistics, step_lines
from .rehearse import Outcome, rehearse
from .remedy import start_scale
from .what_if import what_if


@dataclass(frozen=True)
class Request:
    """What the command line asks for. Of the run's configuration only its `trust_remote_code` lets code run."""

    run: Path
    step: int
    settings: Settings
    dump: str | None = None
    extract: Path | None = None
    what_if: bool = False
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Origin:
    """Where the state of a step comes from.

    Attributes:
        folder: a capsule, a checkpoint, or None for the beginning of the run.
        capsule: what is in it, if it is one.
        config: of that part of the run.
        start: of the recorded step; None for the last one that ran it.
        state_step: steps behind the state.
    """

    folder: Path | None
    capsule: Capsule | None
    config: Config
    start: int | None
    state_step: int


def replay(request: Request, resolved: Config) -> int:
    """Replays and prints. Returns the exit code: 0, or 3 if the step is not finite.

    Args:
        request: what is asked for.
        resolved: config.yaml of the run.

    Raises:
        UserError: the run has no such step, or nothing to start it from.
    """
    transformers.logging.set_verbosity_error()
    console = Console()
    origin = find_origin(request.run, request.step, resolved, console)
    config = trusted(origin.config, request)
    recorded = recorded_step(request, origin)
    components = restored(origin, config, console)
    if request.step > components.n_steps:
        raise UserError(problem("replay.no_step", step=request.step, folder=request.run, last=components.n_steps))
    if any(key.startswith("precision.") and "scale" in key for key in request.settings):
        components.loss_scale.load_state_dict(loss_scale_of(config, components.engine.device).state_dict())
    console.line(say("replay.from", step=request.step, source=origin.folder or say("replay.beginning"),
                     state_step=origin.state_step))  # fmt: skip
    for step in range(origin.state_step + 1, request.step):
        train_step(components, components.plan.rows(step))
    outcome = rehearse(components, request.step, record=True)
    if request.settings:
        console.line(say("replay.changed", settings=", ".join(f"{k}={v}" for k, v in request.settings.items())))
    compare(recorded, outcome.loss, by_site(components, outcome), console)
    if request.what_if:
        what_if(components, request.step, console)
    if request.dump is not None:
        console.line(say("replay.dumped", path=dump(components, request.step, request.dump, request.run)))
    if outcome.finite:
        console.line(say("replay.finite", loss=outcome.loss))
        if request.extract is not None:
            console.line(say("replay.nothing_to_extract"))
        return 0
    diagnosis = diagnose(components, Trouble(request.step, latched=True))
    console.line(say("replay.origin", kind=diagnosis.kind, phase=diagnosis.phase, module=diagnosis.module or "-"))
    for key, value in diagnosis.evidence.items():
        console.line(f"  {key:<16} {_shown(value)}")
    if request.extract is not None:
        console.line(say("replay.extracted", path=extract(components, diagnosis, request.extract)))
    return 3


def find_origin(run: Path, step: int, resolved: Config, console: Console) -> Origin:
    """Where the state before a step can be had; says which capsules and checkpoints are passed over.

    Raises:
        UserError: the folder holds no run, or the run never came to that step.
    """
    if not (run / METRICS).is_file():
        raise UserError(problem("replay.no_run", folder=run))
    lines = step_lines(run)
    for folder in capsules(run, step):
        try:
            capsule = read_capsule(folder, step)
            return Origin(folder, capsule, capsule.facts.config, capsule.facts.start, capsule.facts.state_step)
        except Torn as error:
            console.warn(say("replay.passed_over", folder=folder, what=error))
    recorded = {row["step"]: row["start"] for row in lines}
    if step not in recorded:
        raise UserError(problem("replay.no_step", step=step, folder=run, last=max(recorded, default=0)))
    for folder in reversed([path for path in checkpoints(run) if step_of(path) < step]):
        if what := what_is_torn(folder):
            console.warn(say("replay.passed_over", folder=folder, what=what))
            continue
        progress, config = read_state(folder)
        is_last = recorded[step] == max(row["start"] for row in lines)
        return Origin(folder, None, resolved if is_last else config, recorded[step], progress.step)
    return Origin(None, None, resolved, recorded[step], 0)


def trusted(config: Config, request: Request) -> Config:
    """The configuration to replay with; whether code that comes with the model may run is the user's word alone.

    A step needs no scores: a module of the user's that gives them is not imported.

    Raises:
        UserError: the run was made with such code, and the user has not said so.
    """
    allowed = request.trust_remote_code or bool(request.settings.get("model.trust_remote_code"))
    if config.model.trust_remote_code and not allowed:
        raise UserError(problem("replay.remote_code", folder=request.run, model=config.model.name_or_path))
    return without_code(with_settings(config, request.settings), allowed)


def restored(origin: Origin, config: Config, console: Console) -> Components:
    """The components of the run as they stood before the step, or a few steps before it.

    Raises:
        UserError: model and state do not belong together.
    """
    tokenizer = load_tokenizer(config)
    engine, pad = Engine(), pad_token_id(tokenizer)
    if origin.capsule is not None:
        components = from_capsule(origin, config, build_for(origin.capsule, config, engine, pad, console))
    else:
        data, _ = load_data(config, tokenizer, Console(silent=True))
        components = build(config, engine, data, None, pad, console)
        if origin.folder is not None:
            components, _ = restore(components, origin.folder)
        else:
            start_scale(components)
    components.model.train()
    return components


def build_for(capsule: Capsule, config: Config, engine: Engine, pad: int, console: Console) -> Components:
    """The components of a capsule's run, with its rows for data."""
    if capsule.facts.processes != engine.world_size:
        raise UserError(problem("replay.processes", then=capsule.facts.processes, now=engine.world_size))
    examples = [example for step in capsule.steps.values() for micro in step for own in micro for example in own]
    components = build(config, engine, Dataset(source_name(config.data.train), examples, [], 0), None, pad, console)
    order = components.plan
    plan = RecordedPlan(
        order.dataset, order.batch_size, order.accumulation, order.seed, order.world_size, order.skip,
        recorded=capsule.steps,
    )  # fmt: skip
    return replace(components, plan=plan, n_steps=capsule.facts.n_steps)


def from_capsule(origin: Origin, config: Config, components: Components) -> Components:
    """Puts the state of a capsule into its components."""
    assert origin.capsule is not None
    facts, tensors = origin.capsule.facts, origin.capsule.tensors
    states = [under(prefix, tensors) for prefix in ("adapter.", "optimizer.", "loss_scale.")]
    table = components.model.get_input_embeddings()
    assert isinstance(table, torch.nn.Embedding)
    foreign = differing(trainable(components.model), states[0])
    foreign += components.optimizer.foreign(states[1], facts.state_step)
    foreign += differing(components.loss_scale.state_dict(), states[2])
    foreign += [f"row {e.row}" for e in components.plan.dataset.examples if e.input_ids.max() >= table.num_embeddings]
    if foreign:
        raise UserError(problem("checkpoint.other_model", folder=origin.folder, what=foreign[0]))
    components.optimizer.follow(lr_table(config.training, facts.n_steps, facts.metrics))
    Snapshots(components).restore(Snapshot(Progress(step=facts.state_step), *states))
    return components


def by_site(components: Components, outcome: Outcome) -> dict[str, np.ndarray]:
    """The statistics of a step by the names of their sites; empty where none were taken."""
    if components.recorder is None or outcome.statistics is None:
        return {}
    return {site.name: outcome.statistics[site.id].numpy() for site in components.recorder.sites}


def recorded_step(request: Request, origin: Origin) -> tuple[Any, list[dict[Any, Any]] | None]:
    """Loss and statistics that were recorded of the step; None for the statistics where they say nothing about it now.

    Raises:
        UserError: the statistics are damaged.
    """
    lines = [row for row in step_lines(request.run) if origin.start in (None, row["start"])]
    loss = next((row.get("loss") for row in lines if row["step"] == request.step), None)
    if request.settings:
        return loss, None
    frame = statistics(request.run, steps=request.step, columns=COLUMNS, start=origin.start)
    return loss, frame.to_dict("records")


def compare(
    recorded: tuple[Any, list[dict[Any, Any]] | None], now: float, rows: Mapping[str, np.ndarray], console: Console
) -> None:
    """Prints loss and statistics, by site name, beside the recorded ones."""
    loss, statistics_then = recorded
    console.line(say("replay.loss", recorded=_shown(loss), now=_shown(now)))
    if statistics_then is None:
        return
    n_same = n_all = 0
    worst, worst_at = 0.0, ""
    for row in statistics_then:
        values = rows.get(row["site"])
        if values is None:
            continue
        for column, value in zip(COLUMNS, values, strict=True):
            before, value = stored(column, row[column]), stored(column, value)
            n_all += 1
            if before == value or (math.isnan(before) and math.isnan(value)):
                n_same += 1
            else:
                off = abs(before - value) / max(abs(before), abs(value), 1e-300)
                if not off <= worst:
                    worst, worst_at = off, f"{row['site']} {column}"
    same_loss = loss == now or (loss is None and not math.isfinite(now))
    if n_same == n_all and same_loss:
        console.line(say("replay.same", n=n_all))
    else:
        console.line(say("replay.different", same=n_same, n=n_all, worst=worst, where=worst_at or "loss"))


def stored(column: str, value: Any) -> float:
    """A statistic as the store keeps it."""
    number = math.nan if value is None or value is pd.NA else float(value)
    return float(rounded(np.array([number]))[0]) if column in FLOAT_COLUMNS and math.isfinite(number) else number


def _shown(value: Any) -> str:
    if isinstance(value, float) or value is None:
        return compact(value)
    return f"{value:,}" if isinstance(value, int) else str(value)
