"""A step went wrong: name what did it, keep the step, try remedies on it, and go on or stop.

    capsule -> diagnosis -> trials -> checkpoint of the last healthy state -> stop (exit 3), or settings to go on with

Going on is resuming: the healed run starts from the checkpoint written here, with changed settings, exactly as a user
would do by hand. Killed at any point, the run resumes from the last whole checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ...instrument.judge.detect import Diagnosis, Kind, Trouble
from ...instrument.messages import say
from ...instrument.record.capsule import incident_folder, write_capsule, write_diagnosis
from ..config.schema import Config
from ..config.settings import as_overrides, with_settings
from ..data.examples import Example
from ..loop.checkpoint import checkpoints
from ..loop.components import Components
from ..loop.engine import OutOfMemory
from ..loop.session import Session
from ..loop.snapshots import Snapshot
from ..saved.state import Progress
from ..saved.whole import what_is_torn
from .diagnose import diagnose
from .rehearse import Outcome, rehearse
from .remedy import Remedy, Trial, candidates, listed, try_out
from .screen import Facts, show

EXIT_COLLAPSED = 3


@dataclass(frozen=True)
class Decision:
    """How a run goes on: settings, and the checkpoint they start from."""

    config: Config
    checkpoint: Path


@dataclass(frozen=True)
class Incident:
    """What is known of the step before anything is tried.

    Attributes:
        live: the state now: before the step that the latch held, or after a trend was seen.
        earlier: the newest finite snapshot from before the step.
        folder: where it is kept.
        lost: what the disk refused of it, in words.
    """

    trouble: Trouble
    diagnosis: Diagnosis
    live: Snapshot
    earlier: Snapshot | None
    folder: Path
    lost: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Trials:
    """What running the step again gave.

    Attributes:
        unchanged: with nothing changed; None for a trend, which no single step shows.
        trials: each remedy that was tried, cheapest first.
        seconds: it took.
    """

    unchanged: Outcome | None
    trials: list[Trial]
    seconds: float


@dataclass(frozen=True)
class Choice:
    """What is done about it.

    Attributes:
        remedy: the first that works.
        state: that the run stands in again.
        goes_on: whether the remedy is applied.
    """

    remedy: Remedy | None
    state: Snapshot
    goes_on: bool


def handle_collapse(session: Session, trouble: Trouble) -> int | Decision:
    """Handles a step that went wrong.

    Returns:
        the exit code, or how to go on.
    """
    incident = look(session, trouble)
    tried = try_remedies(session, incident)
    choice = choose(session, incident, tried)
    return go_on_or_stop(session, incident, tried, choice)


def look(session: Session, trouble: Trouble) -> Incident:
    """Diagnoses the step and writes its capsule."""
    components, progress, snapshots = session.components, session.progress, session.snapshots
    earlier = snapshots.newest(before=trouble.step)
    session.console.line(say("collapse.looking", step=trouble.step))
    diagnosis = diagnose(components, trouble)
    live = snapshots.take(progress)
    before_step = live if trouble.latched and trouble.kind is None else earlier or live
    folder = incident_folder(session.run_dir, trouble.step, progress.start)
    incident = Incident(trouble, diagnosis, live, earlier, folder)
    if components.engine.is_main:
        with told(incident, f"{folder.name}/capsule.safetensors"):
            write_capsule(folder, *capsule(components, before_step, trouble.step, progress.start))
    return incident


@contextmanager
def told(incident: Incident, what: str) -> Iterator[None]:
    """Goes on without what the disk refuses, and remembers to say so."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        incident.lost.append(say("collapse.not_kept", what=what, error=error))
        if incident.folder.is_dir() and not any(incident.folder.iterdir()):
            incident.folder.rmdir()


def try_remedies(session: Session, incident: Incident) -> Trials:
    """Runs the step unchanged, then with one change at a time; the state may be an earlier one afterwards."""
    started = time.monotonic()
    trouble = incident.trouble
    unchanged = rehearse(session.components, trouble.step) if trouble.latched else None
    trials = list(_trials(session, incident))
    return Trials(unchanged, trials, time.monotonic() - started)


def choose(session: Session, incident: Incident, tried: Trials) -> Choice:
    """The first remedy that works, whether it is applied, and the state to go back to."""
    precision = session.components.config.precision
    remedy = next((trial.remedy for trial in tried.trials if trial.verified), None)
    may_heal = precision.on_collapse != "stop" and len(session.progress.heals) < precision.max_heals
    live, earlier = incident.live, incident.earlier
    rolls_back = remedy is not None and remedy.rolls_back
    state = earlier if earlier is not None and (rolls_back or not live.is_finite()) else live
    return Choice(remedy, state, goes_on=remedy is not None and may_heal)


def go_on_or_stop(session: Session, incident: Incident, tried: Trials, choice: Choice) -> int | Decision:
    """Restores and saves the chosen state, writes and shows what was found, and says how the run ends or goes on."""
    components, progress, diagnosis = session.components, session.progress, incident.diagnosis
    session.snapshots.restore(choice.state)
    before = replace(progress, **asdict(choice.state.progress) | {"heals": progress.heals})
    config = components.config
    if choice.goes_on and choice.remedy is not None:
        config = with_settings(config, choice.remedy.settings)
        before.heals = [*progress.heals, heal_record(components.config, diagnosis, choice.remedy)]
    checkpoint = _save(session, before, config)
    goes_on = choice.goes_on and checkpoint is not None
    diagnosis.remedies = [as_json(trial) for trial in tried.trials]
    diagnosis.action = components.config.precision.on_collapse if goes_on else "stop"
    if components.engine.is_main:
        with told(incident, f"{incident.folder.name}/diagnosis.json"):
            write_diagnosis(incident.folder, diagnosis.as_json())
        facts = Facts(
            diagnosis,
            tried.trials,
            choice.remedy,
            tried.unchanged,
            before,
            checkpoint,
            incident.folder,
            session.run_dir,
            tried.seconds,
            [*incident.lost, *([] if checkpoint else [steps_lost(session.run_dir)])],
        )
        show(facts, components, session.console)
    components.engine.barrier()
    return Decision(config, checkpoint) if goes_on and checkpoint is not None else EXIT_COLLAPSED


def steps_lost(run_dir: Path) -> str:
    """What is lost where no checkpoint of the last healthy state could be written."""
    whole = next((path for path in reversed(checkpoints(run_dir)) if not what_is_torn(path)), None)
    return say("collapse.all_lost") if whole is None else say("collapse.steps_lost", checkpoint=whole.name)


def _save(session: Session, before: Progress, config: Config) -> Path | None:
    """The checkpoint to go on from, where the main process could write it."""
    engine = session.components.engine
    saved = engine.is_main and session.write_checkpoint(before, config, last=True) is not None
    # a folder of an earlier state may stand there under the same name
    return session.run_dir / f"checkpoint-{before.step}" if engine.any(saved) else None


def _trials(session: Session, incident: Incident) -> Iterator[Trial]:
    """What each remedy did; of the kinds that come in several strengths the first that works ends its kind."""
    components, diagnosis, earlier = session.components, incident.diagnosis, incident.earlier
    policy = components.config.precision.on_collapse
    if policy == "rollback" and diagnosis.kind not in (Kind.DEAD_ADAPTER, Kind.DIVERGENCE):
        rows = list(dict.fromkeys(diagnosis.rows))
        remedy = Remedy("skip_rows", {"data.skip_rows": rows}, values={"rows": listed(rows)})
        yield Trial(remedy, Outcome(float("nan"), True), verified=True)
        return
    worked: set[str] = set()
    for remedy in candidates(components, diagnosis, earlier):
        if remedy.kind in worked:
            continue
        try:
            trial = try_out(components, diagnosis, remedy, earlier, session.snapshots)
        except (OutOfMemory, torch.OutOfMemoryError, MemoryError):
            trial = Trial(remedy, Outcome(float("nan"), False), verified=False)
        if remedy.rolls_back and not trial.verified:
            session.snapshots.restore(incident.live)
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


def namer() -> Callable[[Example], int | str]:
    """What examples are called in a capsule: 7, and "7/1" for the second of the answers that row 7 is split into."""
    names: dict[int, list[Example]] = {}

    def name(example: Example) -> int | str:
        same = names.setdefault(example.row, [])
        at = next((k for k, other in enumerate(same) if other is example), len(same))
        same += [example] if at == len(same) else []
        return f"{example.row}/{at}" if at else example.row

    return name


def label_tensors(example: Example) -> dict[str, torch.Tensor]:
    """What a classifier's row has besides: labels, the kinds of its tokens, what it counts."""
    parts = {"labels": example.labels, "token_types": example.token_types}
    found = {key: torch.from_numpy(part.copy()) for key, part in parts.items() if part is not None}
    return found if example.weight is None else found | {"weight": torch.tensor(example.weight, dtype=torch.float64)}


def capsule(
    components: Components, state: Snapshot, step: int, start: int
) -> tuple[dict[str, torch.Tensor], Mapping[str, Any]]:
    """Tensors and facts of a capsule: the state, and the rows of the steps from there to the step."""
    tensors = {f"adapter.{name}": value for name, value in state.adapter.items()}
    tensors |= {f"optimizer.{name}": value for name, value in state.optimizer.items()}
    tensors |= {f"loss_scale.{name}": value for name, value in state.loss_scale.items()}
    rows: dict[int, list[list[list[int | str]]]] = {}
    name = namer()
    for number in range(state.progress.step + 1, step + 1):
        shares = components.plan.shares(number)
        rows[number] = [[[name(example) for example in own] for own in micro] for micro in shares]
        for example in (example for micro in shares for own in micro for example in own):
            tensors[f"row.{name(example)}.input_ids"] = torch.from_numpy(example.input_ids.copy())
            tensors[f"row.{name(example)}.supervised"] = torch.from_numpy(example.supervised.copy())
            tensors |= {f"row.{name(example)}.{key}": value for key, value in label_tensors(example).items()}
    facts = {
        "step": step,
        "start": start,
        "state_step": state.progress.step,
        "rows": rows,
        "n_steps": components.n_steps,
        "steps_per_epoch": components.plan.steps_per_epoch,
        "metrics": [metric for _, metric in state.progress.evaluations],
        "processes": components.engine.world_size,
        "config": components.config.model_dump(),
    }
    return tensors, facts
