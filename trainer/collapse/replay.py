"""`lora-train replay RUN --step N`: runs a recorded step again and shows what the run recorded and what comes out now.

The state comes from the incident's capsule, else from the nearest checkpoint before the step, from which the steps in
between are run again, else from the beginning. On the same machine, threads and versions loss and every recorded
statistic are the same to the last bit; elsewhere the largest deviation is printed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import transformers
import yaml

from ...instrument.judge.detect import Trouble
from ...instrument.messages import say
from ...instrument.read.load import load_run
from ...instrument.read.store import COLUMNS, FLOAT_COLUMNS, METRICS, read_metrics, rounded
from ...instrument.record.capsule import INCIDENTS, read_capsule
from ..config.schema import Config
from ..config.settings import Settings, with_settings
from ..console import Console, compact
from ..data.batches import Plan
from ..data.examples import Dataset, Example
from ..data.load import load_data
from ..data.sources import source_name
from ..errors import UserError, problem
from ..loop.checkpoint import STATE, Progress, checkpoints, restore, step_of, under
from ..loop.components import Components, build, loss_scale_of
from ..loop.engine import Engine
from ..loop.lr_schedule import lr_table
from ..loop.snapshots import Snapshot, Snapshots
from ..loop.train import train_step
from ..model.load import load_tokenizer, pad_token_id
from .diagnose import diagnose
from .extract import dump, extract
from .rehearse import Outcome, rehearse
from .remedy import start_scale
from .what_if import what_if


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    run: Path
    step: int
    settings: Settings
    dump: str | None = None
    extract: Path | None = None
    what_if: bool = False


@dataclass(frozen=True)
class Origin:
    """Where the state of a step comes from.

    Attributes:
        folder: a capsule, a checkpoint, or None for the beginning of the run.
        is_capsule: which of the two.
        config: of that part of the run.
        start: of the recorded step; None for the last one that ran it.
        state_step: steps behind the state.
    """

    folder: Path | None
    is_capsule: bool
    config: Config
    start: int | None
    state_step: int


def replay(request: Request) -> int:
    """Replays and prints. Returns the exit code: 0, or 3 if the step is not finite.

    Raises:
        UserError: the run has no such step, or nothing to start it from.
    """
    transformers.logging.set_verbosity_error()
    console = Console()
    origin = find_origin(request.run, request.step)
    components = restored(origin, request, console)
    console.line(say("replay.from", step=request.step, source=origin.folder or say("replay.beginning"),
                     state_step=origin.state_step))  # fmt: skip
    for step in range(origin.state_step + 1, request.step):
        train_step(components, components.plan.rows(step))
    outcome = rehearse(components, request.step, record=True)
    if request.settings:
        console.line(say("replay.changed", settings=", ".join(f"{k}={v}" for k, v in request.settings.items())))
    compare(request, origin, outcome.loss, by_site(components, outcome), console)
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


def find_origin(run: Path, step: int) -> Origin:
    """Where the state before a step can be had.

    Raises:
        UserError: the folder holds no run, or the run never came to that step.
    """
    if not (run / METRICS).is_file():
        raise UserError(problem("replay.no_run", folder=run))
    steps = [row for row in read_metrics(run) if "learning_rate" in row]
    last_start = max((row["start"] for row in steps), default=0)
    for folder in sorted((run / INCIDENTS).glob(f"step-{step}*"), key=lambda path: path.stat().st_mtime, reverse=True):
        found = read_capsule(folder)
        if found is not None:
            facts = found[1]
            return Origin(folder, True, Config.model_validate(facts["config"]), facts["start"], facts["state_step"])
    recorded = {row["step"]: row["start"] for row in steps}
    if step not in recorded:
        raise UserError(problem("replay.no_step", step=step, folder=run, last=max(recorded, default=0)))
    resolved = Config.model_validate(yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8")))
    before = [path for path in checkpoints(run) if step_of(path) < step]
    if not before:
        return Origin(None, False, resolved, recorded[step], 0)
    state = json.loads((before[-1] / STATE).read_text(encoding="utf-8"))
    config = resolved if recorded[step] == last_start else Config.model_validate(state["config"])
    return Origin(before[-1], False, config, recorded[step], state["step"])


def restored(origin: Origin, request: Request, console: Console) -> Components:
    """The components of the run as they stood before the step, or a few steps before it."""
    config = with_settings(origin.config, request.settings)
    tokenizer = load_tokenizer(config)
    engine, pad = Engine(), pad_token_id(tokenizer)
    if not origin.is_capsule:
        data, _ = load_data(config, tokenizer, Console(silent=True))
        components = build(config, engine, data, None, pad, console)
        if origin.folder is not None:
            components, _ = restore(components, origin.folder)
        else:
            start_scale(components)
    else:
        assert origin.folder is not None
        found = read_capsule(origin.folder)
        assert found is not None
        tensors, facts = found
        if facts["processes"] != engine.world_size:
            raise UserError(problem("replay.processes", then=facts["processes"], now=engine.world_size))
        recorded = recorded_rows(tensors, facts)
        examples = [example for step in recorded.values() for micro in step for own in micro for example in own]
        dataset = Dataset(source_name(config.data.train), examples, [], 0)
        components = build(config, engine, dataset, None, pad, console)
        order = components.plan
        plan = RecordedPlan(
            dataset, order.batch_size, order.accumulation, order.seed, order.world_size, order.skip, recorded=recorded
        )
        components = replace(components, plan=plan, n_steps=facts["n_steps"])
        components.optimizer.follow(lr_table(config.training, facts["n_steps"], facts.get("metrics", [])))
        states = (under(prefix, tensors) for prefix in ("adapter.", "optimizer.", "loss_scale."))
        Snapshots(components).restore(Snapshot(Progress(step=facts["state_step"]), *states))
    if any(key.startswith("precision.") and "scale" in key for key in request.settings):
        components.loss_scale.load_state_dict(loss_scale_of(config, engine.device).state_dict())
    components.model.train()
    return components


def recorded_rows(
    tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]
) -> dict[int, list[list[list[Example]]]]:
    """The micro-batches of the steps in a capsule, each as what every process had of it."""

    def example(row: int | str) -> Example:
        number = int(str(row).partition("/")[0])  # "7/1": the second of the answers that a row is trained on apart
        return Example(number, tensors[f"row.{row}.input_ids"].numpy(), tensors[f"row.{row}.supervised"].numpy())

    steps = facts["rows"].items()
    return {int(step): [[[example(row) for row in own] for own in micro] for micro in micros] for step, micros in steps}


@dataclass(frozen=True)
class RecordedPlan(Plan):
    """The rows of a few steps, as a capsule keeps them: the data itself may be gone."""

    recorded: Mapping[int, list[list[list[Example]]]] = field(default_factory=dict)

    def shares(self, step: int) -> list[list[list[Example]]]:
        """The micro-batches of a step, without the rows that are left out now."""
        return [[self.kept(own) for own in micro] for micro in self.recorded[step]]


def by_site(components: Components, outcome: Outcome) -> dict[str, np.ndarray]:
    """The statistics of a step by the names of their sites; empty where none were taken."""
    if components.recorder is None or outcome.statistics is None:
        return {}
    return {site.name: outcome.statistics[site.id].numpy() for site in components.recorder.sites}


def compare(request: Request, origin: Origin, now: float, rows: Mapping[str, np.ndarray], console: Console) -> None:
    """Prints loss and statistics, by site name, beside the recorded ones."""
    lines = [row for row in read_metrics(request.run, origin.start) if row.get("step") == request.step]
    recorded = next((row for row in lines if "learning_rate" in row), None)
    loss = recorded["loss"] if recorded else None
    console.line(say("replay.loss", recorded=_shown(loss), now=_shown(now)))
    if request.settings:
        return
    frame = load_run(request.run).stats(steps=request.step, columns=COLUMNS, start=origin.start)
    n_same = n_all = 0
    worst, worst_at = 0.0, ""
    for row in frame.to_dict("records"):
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
