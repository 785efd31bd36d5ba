"""Runs a step and throws it away: forward, backward, a look at loss and gradients, and nothing is applied.

Same rows, same seeds, same weights as the step has; remedies, replays, diagnoses, --what-if and --dry-run all look at a
step this way. What changes is the configuration, for that one time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...instrument.record.loss_scale import LossScale
from ...instrument.record.trace import Tracer
from ..config.schema import Config
from ..config.settings import Settings, with_settings
from ..data.batches import StepRows
from ..loop.components import Components, loss_scale_of
from ..loop.optim import has_non_finite
from ..loop.train import accumulate, forward_backward
from ..model.float32 import in_float32, matching

# Between the largest gradient of one batch and the largest number: later batches have larger ones.
HEADROOM = 8.0


@dataclass(frozen=True)
class Outcome:
    """What a step gave.

    Attributes:
        loss: over its supervised tokens; NaN where it is not finite or no row is left.
        finite: whether the loss and every gradient are.
        statistics: float64 [sites, 12], where they were asked for.
        tracer: of every module, where it was asked for.
    """

    loss: float
    finite: bool
    statistics: torch.Tensor | None = None
    tracer: Tracer | None = None


def rehearse(
    components: Components,
    step: int,
    settings: Settings | None = None,
    rows: StepRows | None = None,
    record: bool = False,
    trace: bool = False,
) -> Outcome:
    """Forward and backward of a step; adapter, optimizer and loss scale stay as they are.

    Args:
        settings: changes to the configuration, for this time.
        rows: what this process runs on its own, `step` being theirs; None: the step's rows, on all processes.
        record: take the statistics, if there is a recorder.
        trace: look at what every module reads and gives.
    """
    with changed(components, settings or {}) as own, ExitStack() as stack:
        own = own if record else replace(own, recorder=None)
        stack.callback(own.optimizer.clear)
        if own.recorder is not None:
            stack.enter_context(own.recorder.active())
        tracer = tracer_of(own) if trace else None
        stack.enter_context(tracer.active() if tracer is not None else nullcontext())
        if rows is not None:
            totals = accumulate(own, rows)
        elif (all_rows := own.plan.rows(step)).examples:
            totals = forward_backward(own, all_rows)
        else:
            return Outcome(math.nan, finite=True)
        gradient_rows = own.optimizer.gradient_rows()
        statistics = None
        if own.recorder is not None:
            own.recorder.finish_step(gradient_rows, own.optimizer.gradients)
            for _, values, _ in own.recorder.drain():
                statistics = values.clone()
        loss = float(totals[0])
        finite = math.isfinite(loss) and not bool(has_non_finite(gradient_rows))
        return Outcome(loss, finite, statistics, tracer)


def tracer_of(components: Components) -> Tracer:
    """Looks at every module of the model."""
    dtype = getattr(torch, components.config.compute_dtype)
    return Tracer(components.model, components.patched.groups, dtype)


@contextmanager
def changed(components: Components, settings: Settings) -> Iterator[Components]:
    """The same components under other settings, for a while."""
    if not settings:
        yield components
        return
    config = with_settings(components.config, settings)
    with ExitStack() as stack:
        before = set(matching(components.model, components.config.precision.fp32_modules))
        names = [name for name in matching(components.model, config.precision.fp32_modules) if name not in before]
        stack.enter_context(in_float32(components.model, names))
        base: Any = components.model.get_base_model()
        if config.model.attn_implementation != components.config.model.attn_implementation:
            stack.callback(base.set_attn_implementation, base.config._attn_implementation)
            base.set_attn_implementation(config.model.attn_implementation)
        yield replace(
            components,
            config=config,
            plan=replace(components.plan, skip=frozenset(config.data.skip_rows)),
            loss_scale=trial_scale(components, config),
            # the recorder's groups do not know of modules that stand alone now
            recorder=None if names else components.recorder,
        )


def trial_scale(components: Components, config: Config) -> LossScale:
    """The loss scale under these settings: it has fallen already, to the headroom above a lowered floor."""
    before, now = components.config.precision, config.precision
    if (before.loss_scale, before.min_loss_scale) == (now.loss_scale, now.min_loss_scale):
        return components.loss_scale
    scale = loss_scale_of(config, components.engine.device)
    if scale.dynamic:
        scale.scale = components.loss_scale.scale.clamp(max=now.min_loss_scale * HEADROOM)
    return scale
