"""How near the longest batch comes to the limit of fp16: one real forward and backward that changes nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ...instrument.constants import FP16_MAX
from ...instrument.messages import say
from ...instrument.record.once import in_mode
from ...instrument.record.trace import SIDES, Origin, Tracer
from ..collapse.diagnose import head_name
from ..collapse.rehearse import rehearse
from ..console import Console
from ..data.batches import StepRows
from ..data.examples import Example
from ..loop.components import Components

N_SHOWN = 10


@dataclass(frozen=True)
class Peak:
    """The largest magnitude that passes one side of a module."""

    module: str
    tensor: str
    absmax: float

    @property
    def share(self) -> float:
        """Of the largest finite fp16 number."""
        return self.absmax / FP16_MAX


@dataclass(frozen=True)
class Headroom:
    """What the forward and backward showed.

    Attributes:
        loss: mean over the supervised tokens.
        loss_scale: at which the gradients were looked at.
        halvings: how often it was halved before they were finite.
        peaks: the modules nearest to the limit, nearest first.
        origin: who is to blame where something is not finite.
        phase: forward or backward where something is not finite, else None.
    """

    loss: float
    loss_scale: float
    halvings: int
    peaks: list[Peak]
    origin: Origin | None
    phase: str | None


def measure(components: Components, examples: Sequence[Example]) -> Headroom:
    """Runs these rows as one micro-batch; adapter, optimizer and loss scale stay as they are."""
    rows = StepRows(1, [], sum(example.counts for example in examples)).alone(components.engine.rank, 0, examples)
    loss_scale = components.loss_scale
    before, halvings = loss_scale.scale.clone(), 0
    with in_mode(components.model, training=True):
        while True:
            outcome = rehearse(components, rows.step, rows=rows, trace=True)
            if outcome.finite or not math.isfinite(outcome.loss) or not bool(loss_scale.can_fall()):
                break
            # a dynamic scale skips a step and is halved
            loss_scale.scale.mul_(0.5).clamp_(min=loss_scale.min_scale)
            halvings += 1
    scale = float(loss_scale.scale)
    loss_scale.scale.copy_(before)
    phase = None if outcome.finite else "backward" if math.isfinite(outcome.loss) else "forward"
    assert outcome.tracer is not None
    origin = outcome.tracer.origin(phase, head_name(components)) if phase else None
    return Headroom(outcome.loss, scale, halvings, nearest(outcome.tracer), origin, phase)


def nearest(tracer: Tracer) -> list[Peak]:
    """The modules with the largest magnitudes, each by its largest tensor.

    A tensor that modules hand on is listed where it was made: outputs go before inputs, modules before those they
    stand in, and of the rest the first in the order of the calls.
    """
    found = []
    for trace in tracer.traces.values():
        for side in SIDES:
            absmax = trace.sides[side].absmax
            if absmax == absmax and absmax > 0:
                order = (-absmax, side not in ("out", "grad_in"), -trace.name.count("."), trace.order)
                found.append((order, Peak(trace.name, side, absmax)))
    peaks: list[Peak] = []
    for _, peak in sorted(found, key=lambda item: item[0]):
        if all(peak.module != other.module and peak.absmax != other.absmax for other in peaks):
            peaks.append(peak)
    return peaks[:N_SHOWN]


def show(headroom: Headroom, examples: Sequence[Example], console: Console) -> int:
    """Prints it and returns the exit code: 0, or 3 if loss or gradients are not finite."""
    width = max(len(example.input_ids) for example in examples)
    rows = ", ".join(str(example.row) for example in examples[:5]) + (" ..." if len(examples) > 5 else "")
    console.line(say("dry_run.headroom", n_rows=len(examples), length=width, rows=rows))
    console.line(say("dry_run.loss", loss=headroom.loss, scale=headroom.loss_scale))
    if headroom.halvings:
        console.warn(say("dry_run.scale_falls", steps=headroom.halvings, scale=headroom.loss_scale))
    if headroom.peaks:
        console.line(say("dry_run.nearest", limit=FP16_MAX))
    for peak in headroom.peaks:
        console.line(f"  {peak.share:>9.3%} {peak.absmax:>14,.4g}  {peak.module}:{peak.tensor}")
    if headroom.phase is None:
        console.line(say("dry_run.finite"))
        return 0
    forward, origin = headroom.phase == "forward", headroom.origin
    phase = say("dry_run.forward") if forward else say("dry_run.backward")
    console.warn(say("dry_run.not_finite", phase=phase, module=origin.trace.name if origin else "-"))
    if origin is None:
        return 3
    for side in SIDES[:2] if forward else SIDES[2:]:
        seen = origin.trace.sides[side]
        if not seen.finite:
            console.line(say("dry_run.bad_values", tensor=side, n=seen.n, n_inf=seen.n_inf, n_nan=seen.n_nan))
    return 3
