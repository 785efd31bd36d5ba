"""Tries remedies on the step that went wrong, one at a time, and says which work.

Each is a change of the configuration (`settings`), made in memory for one forward and backward pass of that very step:
same rows, same seeds, same weights. A remedy is verified if loss and gradients are finite then, and nothing is lost to
underflow that was the trouble. Candidates come in the order of what they cost: the loss scale costs nothing, float32
for one module a little, a row of data is data lost.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ...instrument.judge.detect import LOST_SHARE, Diagnosis, lost_share
from ...instrument.record.latch import Latch
from ...instrument.record.loss_scale import MAX_SCALE, LossScale
from ...instrument.record.trace import Tracer
from ..config.schema import Config
from ..config.settings import Settings, with_settings
from ..loop.components import Parts, loss_scale_of
from ..loop.lr_schedule import lr_table
from ..loop.optim import has_non_finite
from ..loop.snapshots import Copy, Healthy
from ..loop.train import forward_backward, train_step
from ..model.float32 import in_float32, matching
from .diagnose import head_name

# Between the largest gradient of one batch and the largest number: later batches have larger ones.
HEADROOM = 8.0
# Powers of two between the scales that are tried.
SCALE_STEP = 2.0**4
N_SCALES = 6
# How far a diverged run is taken back in learning rate, and how many steps show that it holds.
SLOWER = (0.1, 0.01)
STEPS_TO_PROVE = 20


@dataclass(frozen=True)
class Remedy:
    """One change.

    Attributes:
        kind: names its sentence in the catalogue.
        settings: what changes in the configuration.
        rolls_back: whether it starts from an earlier healthy state.
        values: for the sentence.
    """

    kind: str
    settings: Settings
    rolls_back: bool = False
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What a step gave.

    Attributes:
        loss: of the step; NaN where it is not finite or no row is left.
        finite: whether the loss and every gradient are.
        lost_share: of fp16 gradient values, at the site where most are lost to zero; NaN without statistics.
    """

    loss: float
    finite: bool
    lost_share: float = math.nan


@dataclass(frozen=True)
class Trial:
    """A remedy and what it did."""

    remedy: Remedy
    outcome: Outcome
    verified: bool


def attempt(parts: Parts, step: int) -> Outcome:
    """Forward and backward of a step, nothing applied."""
    rows = [example for micro in parts.plan.step(step) for example in micro]
    if not rows:
        return Outcome(math.nan, True)
    totals = forward_backward(parts, step)
    gradient_rows = parts.optimizer.gradient_rows()
    share = math.nan
    if parts.recorder is not None:
        parts.recorder.finish_step(gradient_rows, parts.optimizer.gradients)
        for _, recorded, _ in parts.recorder.drain():
            share = lost_share(parts.recorder.sites, recorded.numpy())
    parts.optimizer.clear()
    loss = float(totals[0])
    return Outcome(loss, math.isfinite(loss) and not bool(has_non_finite(gradient_rows)), share)


@contextmanager
def changed(parts: Parts, settings: Settings) -> Iterator[Parts]:
    """The same parts under other settings, for a while."""
    config = with_settings(parts.config, settings)
    with ExitStack() as stack:
        before = set(matching(parts.model, parts.config.precision.fp32_modules))
        names = [name for name in matching(parts.model, config.precision.fp32_modules) if name not in before]
        stack.enter_context(in_float32(parts.model, names))
        base: Any = parts.model.get_base_model()
        if config.model.attn_implementation != parts.config.model.attn_implementation:
            stack.callback(base.set_attn_implementation, base.config._attn_implementation)
            base.set_attn_implementation(config.model.attn_implementation)
        # the recorder's groups do not know of modules that stand alone now
        recorder = None if names else parts.recorder
        if recorder is not None:
            stack.enter_context(recorder.active())
        plan = replace(parts.plan, skip=frozenset(config.data.skip_rows))
        yield replace(parts, config=config, plan=plan, loss_scale=trial_scale(parts, config), recorder=recorder)


def trial_scale(parts: Parts, config: Config) -> LossScale:
    """The loss scale under these settings: it has fallen already, to the headroom above a lowered floor."""
    before, now = parts.config.precision, config.precision
    if (before.loss_scale, before.min_loss_scale) == (now.loss_scale, now.min_loss_scale):
        return parts.loss_scale
    scale = loss_scale_of(config, parts.engine.device)
    if scale.dynamic:
        scale.scale = parts.loss_scale.scale.clamp(max=now.min_loss_scale * HEADROOM)
    return scale


def try_out(parts: Parts, diagnosis: Diagnosis, remedy: Remedy, copy: Copy | None, healthy: Healthy) -> Trial:
    """Runs the step with one change."""
    if remedy.rolls_back:
        assert copy is not None
        healthy.restore(copy)
    with changed(parts, remedy.settings) as other:
        if diagnosis.kind == "divergence":
            outcome = _prove_by_training(other, diagnosis, copy, healthy)
            return Trial(remedy, outcome, outcome.finite and outcome.loss <= diagnosis.evidence["limit"])
        outcome = attempt(other, diagnosis.step)
        verified = outcome.finite
        if remedy.kind == "skip_rows" and diagnosis.step < parts.n_steps:
            # rows are to blame only if the next ones do better
            verified = verified and attempt(other, diagnosis.step + 1).finite
    if diagnosis.kind == "scale_underflow":
        verified = verified and outcome.lost_share <= LOST_SHARE
    return Trial(remedy, outcome, verified)


def _prove_by_training(parts: Parts, diagnosis: Diagnosis, copy: Copy | None, healthy: Healthy) -> Outcome:
    """Trains on from the healthy copy with the settings; the state is put back afterwards."""
    assert copy is not None
    parts = replace(parts, latch=Latch(parts.engine.device))
    parts.optimizer.follow(lr_table(parts.config.training, parts.n_steps))
    losses = []
    for step in range(copy.progress.step + 1, min(copy.progress.step + STEPS_TO_PROVE, parts.n_steps) + 1):
        losses.append(float(train_step(parts, step)[0]))
    if parts.recorder is not None:
        for _ in parts.recorder.drain():
            pass
    healthy.restore(copy)
    finite = all(map(math.isfinite, losses))
    return Outcome(sum(losses[-3:]) / len(losses[-3:]), finite)


def candidates(parts: Parts, diagnosis: Diagnosis, copy: Copy | None) -> Iterator[Remedy]:
    """What could help, in the order of what it costs. The caller stops asking for more of a kind that works."""
    config, kind = parts.config, diagnosis.kind
    if kind == "dead_adapter":
        if copy is not None:
            yield Remedy("rollback", {}, True, {"step": copy.progress.step})
        return
    if kind == "divergence":
        for factor in SLOWER if copy is not None else ():
            assert copy is not None
            slower = config.training.learning_rate * factor
            yield Remedy(
                "learning_rate", {"training.learning_rate": slower}, True, {"rate": slower, "step": copy.progress.step}
            )
        return
    if kind in ("forward_overflow", "backward_overflow", "scale_collapse", "scale_underflow"):
        yield from _scales(parts, diagnosis)
    if kind in ("forward_overflow", "backward_overflow", "scale_collapse") and diagnosis.module:
        if config.model.attn_implementation == "eager" and "att" in diagnosis.module.rpartition(".")[2]:
            yield Remedy("sdpa", {"model.attn_implementation": "sdpa"})
        if config.compute_dtype != "float32":
            for name in _with_parents(diagnosis.module):
                yield Remedy("fp32_module", {"precision.fp32_modules": [name]}, values={"module": name})
            head = head_name(parts)
            if head and not any(part.isdigit() for part in diagnosis.module.split(".")):
                # what comes after the layers is read by the head, which would round it again
                both = [diagnosis.module, head]
                yield Remedy("fp32_module", {"precision.fp32_modules": both}, values={"module": ", ".join(both)})
    if kind in ("scale_underflow", "not_reproduced"):  # no row is to blame
        return
    rows = diagnosis.evidence.get("rows_alone") or diagnosis.rows
    yield Remedy("skip_rows", {"data.skip_rows": list(rows)}, values={"rows": listed(rows)})


def _scales(parts: Parts, diagnosis: Diagnosis) -> Iterator[Remedy]:
    """Other loss scales: for a forward overflow one, to show that it does not help."""
    if not parts.config.training.fp16:
        return
    current = float(parts.loss_scale.scale)
    if diagnosis.kind == "scale_underflow":
        better = recommended_scale(parts, diagnosis.step)
        if better is not None and better > current:
            yield Remedy("loss_scale", {"precision.loss_scale": better}, values={"before": current, "after": better})
        return
    for power in range(1, 2 if diagnosis.kind == "forward_overflow" else N_SCALES + 1):
        lower = current / SCALE_STEP**power
        # a dynamic scale finds its own level; other batches need a lower one than this
        floor = {"precision.min_loss_scale": lower / HEADROOM}
        settings = floor if diagnosis.kind == "scale_collapse" else {"precision.loss_scale": lower}
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


def recommended_scale(parts: Parts, step: int) -> float | None:
    """The power of two that puts the largest fp16 gradient of a step `HEADROOM` below the largest number.

    Tries scales downwards until the gradients are finite; None if none is, or if all are zero.
    """
    scale = loss_scale_of(parts.config, parts.engine.device)
    power = math.log2(MAX_SCALE)
    while power >= 0:
        scale.scale = torch.tensor(2.0**power, device=parts.engine.device)
        trial = replace(parts, loss_scale=scale, recorder=None)
        tracer = Tracer(parts.model, parts.patched.groups, torch.float16)
        with tracer.active():
            outcome = attempt(trial, step)
        if not math.isfinite(outcome.loss):
            return None
        if outcome.finite:
            peaks = [seen.absmax for t in tracer.traces.values() for seen in (t.sides["grad_out"], t.sides["grad_in"])]
            peak = max(peaks, default=0.0)
            if peak == 0:
                return None
            room = math.floor(math.log2(65504.0 / (peak * HEADROOM)))
            return 2.0 ** min(power + room, math.log2(MAX_SCALE))
        power -= math.log2(SCALE_STEP)
    return None


def start_scale(parts: Parts) -> None:
    """Begins a run with `precision.loss_scale: auto` at the scale that suits its first batch."""
    if parts.config.training.fp16 and parts.config.precision.loss_scale == "auto":
        scale = recommended_scale(parts, 1)
        if scale is not None:
            parts.loss_scale.scale.fill_(max(scale, parts.config.precision.min_loss_scale))
