"""Tries remedies on the step that went wrong, one at a time, and says which work.

Each is a change of the configuration (`settings`), made in memory for one forward and backward pass of that very step:
same rows, same seeds, same weights. A remedy is verified if loss and gradients are finite then, and nothing is lost to
underflow that was the trouble. Candidates come in the order of what they cost: the loss scale costs nothing, float32
for one module a little, a row of data is data lost.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ...instrument.constants import FP16_MAX
from ...instrument.judge.detect import LOST_SHARE, Diagnosis, Kind, lost_share
from ...instrument.record.latch import Latch
from ...instrument.record.loss_scale import MAX_SCALE
from ..config.settings import Settings
from ..loop.components import Components, loss_scale_of
from ..loop.lr_schedule import lr_table
from ..loop.snapshots import Snapshot, Snapshots
from ..loop.train import train_step
from .diagnose import head_name
from .rehearse import HEADROOM, Outcome, changed, rehearse

# Powers of two between the scales that are tried.
SCALE_STEP = 2.0**4
N_SCALES = 6
# How far a diverged run is taken back in learning rate, and how many steps show that it holds.
SLOWER = (0.1, 0.01)
STEPS_TO_PROVE = 20
OVERFLOWS = (Kind.FORWARD_OVERFLOW, Kind.BACKWARD_OVERFLOW, Kind.SCALE_COLLAPSE)


@dataclass(frozen=True)
class Remedy:
    """One change.

    Attributes:
        kind: names its sentence in the catalogue.
        settings: what changes in the configuration.
        rolls_back: whether it starts from an earlier snapshot.
        values: for the sentence.
    """

    kind: str
    settings: Settings
    rolls_back: bool = False
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """A remedy and what it did."""

    remedy: Remedy
    outcome: Outcome
    verified: bool


def try_out(
    components: Components, diagnosis: Diagnosis, remedy: Remedy, snapshot: Snapshot | None, snapshots: Snapshots
) -> Trial:
    """Runs the step with one change.

    Args:
        snapshot: what a remedy that rolls back begins with; it stays restored.
    """
    if remedy.rolls_back:
        assert snapshot is not None
        snapshots.restore(snapshot)
    step, settings = diagnosis.step, remedy.settings
    if diagnosis.kind == Kind.DIVERGENCE:
        assert snapshot is not None
        outcome = _prove_by_training(components, settings, snapshot, snapshots)
        return Trial(remedy, outcome, outcome.finite and outcome.loss <= diagnosis.evidence["limit"])
    underflows = diagnosis.kind == Kind.SCALE_UNDERFLOW
    outcome = rehearse(components, step, settings, record=underflows)
    verified = outcome.finite
    if remedy.kind == "skip_rows" and step < components.n_steps:
        # rows are to blame only if the next ones do better
        verified = verified and rehearse(components, step + 1, settings).finite
    if underflows:
        verified = verified and _lost(components, outcome) <= LOST_SHARE
    return Trial(remedy, outcome, verified)


def _lost(components: Components, outcome: Outcome) -> float:
    """Share of fp16 gradient values that are lost to zero, at the median site; NaN without statistics."""
    if components.recorder is None or outcome.statistics is None:
        return math.nan
    return lost_share(components.recorder.sites, outcome.statistics.numpy())


def _prove_by_training(components: Components, settings: Settings, snapshot: Snapshot, snapshots: Snapshots) -> Outcome:
    """Trains on from the snapshot with the settings; the state is put back afterwards."""
    with changed(components, settings) as other:
        own = replace(other, latch=Latch(other.engine.device), recorder=None)
        own.optimizer.follow(lr_table(own.config.training, own.n_steps))
        first = snapshot.progress.step + 1
        steps = range(first, min(first + STEPS_TO_PROVE - 1, own.n_steps) + 1)
        losses = [float(train_step(own, own.plan.rows(step))[0]) for step in steps]
        snapshots.restore(snapshot)
    return Outcome(sum(losses[-3:]) / len(losses[-3:]), all(map(math.isfinite, losses)))


def candidates(components: Components, diagnosis: Diagnosis, snapshot: Snapshot | None) -> Iterator[Remedy]:
    """What could help, in the order of what it costs. The caller stops asking for more of a kind that works."""
    config, kind = components.config, diagnosis.kind
    if kind in (Kind.DEAD_ADAPTER, Kind.DIVERGENCE):
        if snapshot is not None:
            yield from _back_to(snapshot, kind, config.training.learning_rate)
        return
    if kind in (*OVERFLOWS, Kind.SCALE_UNDERFLOW):
        yield from _scales(components, diagnosis)
    if kind in OVERFLOWS and diagnosis.module:
        if config.model.attn_implementation == "eager" and "att" in diagnosis.module.rpartition(".")[2]:
            yield Remedy("sdpa", {"model.attn_implementation": "sdpa"})
        if config.compute_dtype != "float32":
            for name in _with_parents(diagnosis.module):
                yield Remedy("fp32_module", {"precision.fp32_modules": [name]}, values={"module": name})
            head = head_name(components)
            if head and not any(part.isdigit() for part in diagnosis.module.split(".")):
                # what comes after the layers is read by the head, which would round it again
                both = [diagnosis.module, head]
                yield Remedy("fp32_module", {"precision.fp32_modules": both}, values={"module": ", ".join(both)})
    if kind in (Kind.SCALE_UNDERFLOW, Kind.NOT_REPRODUCED):  # no row is to blame
        return
    bad = diagnosis.evidence.get("first_bad_row")
    rows = diagnosis.evidence.get("rows_alone") or ([bad] if bad is not None else diagnosis.rows)
    yield Remedy("skip_rows", {"data.skip_rows": list(rows)}, values={"rows": listed(rows)})


def _back_to(snapshot: Snapshot, kind: Kind, learning_rate: float) -> Iterator[Remedy]:
    """What an earlier state makes possible."""
    step = snapshot.progress.step
    if kind == Kind.DEAD_ADAPTER:
        yield Remedy("rollback", {}, True, {"step": step})
        return
    for factor in SLOWER:
        slower = learning_rate * factor
        yield Remedy("learning_rate", {"training.learning_rate": slower}, True, {"rate": slower, "step": step})


def _scales(components: Components, diagnosis: Diagnosis) -> Iterator[Remedy]:
    """Other loss scales: for a forward overflow one, to show that it does not help."""
    if not components.config.training.fp16:
        return
    current = float(components.loss_scale.scale)
    if diagnosis.kind == Kind.SCALE_UNDERFLOW:
        better = recommended_scale(components, diagnosis.step)
        if better is not None and better > current:
            yield Remedy("loss_scale", {"precision.loss_scale": better}, values={"before": current, "after": better})
        return
    for power in range(1, 2 if diagnosis.kind == Kind.FORWARD_OVERFLOW else N_SCALES + 1):
        lower = current / SCALE_STEP**power
        # a dynamic scale finds its own level; other batches need a lower one than this
        floor = {"precision.min_loss_scale": lower / HEADROOM}
        settings = floor if diagnosis.kind == Kind.SCALE_COLLAPSE else {"precision.loss_scale": lower}
        yield Remedy("loss_scale", settings, values={"before": current, "after": lower})


def _with_parents(module: str) -> Iterator[str]:
    """The module, then what it is part of up to its layer: `layers.0.mlp.down_proj`, `layers.0.mlp`, `layers.0`."""
    names = module.split(".")
    while names and not names[-1].isdigit():
        yield ".".join(names)
        names.pop()
        if not any(name.isdigit() for name in names):
            return
    if names:
        yield ".".join(names)


def listed(rows: list[int]) -> str:
    """Rows as a sentence has them."""
    return ", ".join(map(str, rows[:5])) + (" ..." if len(rows) > 5 else "")


def recommended_scale(components: Components, step: int) -> float | None:
    """The power of two that puts the largest fp16 gradient of a step `HEADROOM` below the largest number.

    Tries scales downwards until the gradients are finite; None if none is, or if all are zero.
    """
    scale = loss_scale_of(components.config, components.engine.device)
    power = math.log2(MAX_SCALE)
    while power >= 0:
        scale.scale = torch.tensor(2.0**power, device=components.engine.device)
        outcome = rehearse(replace(components, loss_scale=scale), step, trace=True)
        if not math.isfinite(outcome.loss):
            return None
        if outcome.finite:
            assert outcome.tracer is not None
            sides = [trace.sides for trace in outcome.tracer.traces.values()]
            peaks = [side[name].absmax for side in sides for name in ("grad_out", "grad_in")]
            peak = max(peaks, default=0.0)
            if peak == 0:
                return None
            higher = math.floor(math.log2(FP16_MAX / (peak * HEADROOM)))
            return 2.0 ** min(power + higher, math.log2(MAX_SCALE))
        power -= math.log2(SCALE_STEP)
    return None


def start_scale(components: Components) -> None:
    """Begins a run with `precision.loss_scale: auto` at the scale that suits its first batch."""
    if components.config.training.fp16 and components.config.precision.loss_scale == "auto":
        scale = recommended_scale(components, 1)
        if scale is not None:
            components.loss_scale.scale.fill_(max(scale, components.config.precision.min_loss_scale))
