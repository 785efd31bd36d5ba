"""Runs a step that went wrong again and says what, where and which rows.

The state must be that of the step: the latch has kept it. Every process runs its own rows; what they find is put
together, and the lowest micro-batch and rank decide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import LoraLayer

from ...instrument.judge.detect import Diagnosis, Kind, Trouble
from ...instrument.record.trace import Origin, Tracer, bad_weights, traced_modules, watch_ops
from ..data.batches import StepRows
from ..data.examples import Example
from ..loop.components import Components
from ..model.load import trainable
from .rehearse import Outcome, rehearse

PHASES = {
    Kind.DEAD_ADAPTER: "optimizer",
    Kind.DIVERGENCE: "optimizer",
    Kind.NO_SUPERVISED_TOKENS: "data",
    Kind.FORWARD_OVERFLOW: "forward",
    Kind.BAD_WEIGHT: "forward",
}


@dataclass(frozen=True)
class Found:
    """What one process found, as plain values."""

    micro_batch: int
    rank: int
    phase: str
    kind: Kind
    module: str | None
    rows_alone: list[int]
    evidence: dict[str, Any]


@dataclass(frozen=True)
class Suspect:
    """This process's share of a micro-batch that is not finite.

    Attributes:
        rows: of the whole step.
        micro_batch: its number in the step.
        own: its rows.
        phase: forward or backward, whichever is the first that is not finite.
        tracer: what every module read and gave.
    """

    components: Components
    rows: StepRows
    micro_batch: int
    own: Sequence[Example]
    phase: str
    tracer: Tracer

    def again(self, examples: Sequence[Example]) -> Outcome:
        """These rows of it once more."""
        rank = self.components.engine.rank
        rows = self.rows.alone(rank, self.micro_batch, examples)
        return rehearse(self.components, self.rows.step, rows=rows)


def diagnose(components: Components, trouble: Trouble) -> Diagnosis:
    """What was wrong with the step; the adapter is not touched."""
    step, rows = trouble.step, components.plan.rows(trouble.step)
    numbers = list(rows.numbers)
    if trouble.kind is not None:
        phase = PHASES.get(trouble.kind, "backward")
        evidence = {**trouble.evidence, "first_bad_row": first_bad_row(trouble, trouble.kind)}
        return Diagnosis(trouble.kind, step, trouble.module, phase, numbers, evidence)
    adapter: dict[str, Any] = adapter_facts(components)
    if rows.n_supervised == 0:
        evidence = {"n_supervised": 0, **adapter, "first_bad_row": None}
        return Diagnosis(Kind.NO_SUPERVISED_TOKENS, step, None, "data", numbers, evidence)
    dead = dead_module(components)
    if dead is not None:  # whatever came of it, and wherever: softmax hides an infinite score in the forward pass
        adapter["first_bad_row"] = first_bad_row(trouble, Kind.DEAD_ADAPTER)
        return Diagnosis(Kind.DEAD_ADAPTER, step, dead, PHASES[Kind.DEAD_ADAPTER], numbers, adapter)
    found = [item for item in components.engine.gather_objects(_find(components, rows)) if item]
    if not found:
        adapter["first_bad_row"] = first_bad_row(trouble, Kind.NOT_REPRODUCED)
        return Diagnosis(Kind.NOT_REPRODUCED, step, None, "forward", numbers, adapter)
    # a gradient that overflows while the scale still falls is no trouble beside a forward pass that does
    first = min(found, key=lambda item: (item.phase != "forward", item.micro_batch, item.rank))
    same = [item for item in found if (item.phase, item.micro_batch) == (first.phase, first.micro_batch)]
    alone = sorted({row for item in same for row in item.rows_alone})
    evidence = {**first.evidence, "micro_batch": first.micro_batch, "rows_alone": alone, **adapter}
    evidence["first_bad_row"] = first_bad_row(trouble, first.kind, (first.micro_batch, first.rank))
    return Diagnosis(first.kind, step, first.module, PHASES.get(first.kind, "backward"), numbers, evidence)


def first_bad_row(trouble: Trouble, kind: Kind, place: tuple[int, int] | None = None) -> int | None:
    """The first row that was not finite when the step ran, without running it again.

    Args:
        place: micro-batch and process to blame; None: the first that has such a row.

    Returns:
        None where every one of several rows was, where weights are to blame and no row was spared, or where nobody
        recorded it.
    """
    if kind in (Kind.BAD_WEIGHT, Kind.DEAD_ADAPTER) and trouble.all_bad:
        return None
    rows = trouble.bad_rows.get(min(trouble.bad_rows, default=(0, 0)) if place is None else place)
    return rows[0] if rows else None


def adapter_facts(components: Components) -> dict[str, int]:
    """How many values the adapter has and how many of them are not finite."""
    parameters = list(trainable(components.model).values())
    return {
        "adapter_values": sum(p.numel() for p in parameters),
        "adapter_nonfinite": sum(int((~torch.isfinite(p)).sum()) for p in parameters),
    }


def dead_module(components: Components) -> str | None:
    """The first LoRA module, in forward order, with a weight that is not finite."""
    patched = components.patched
    layers = [pair for group in patched.groups for pair in zip(group.names, group.modules, strict=True)]
    layers += [(name, layer) for name, layer, _ in patched.unfused]
    for name, layer in layers:
        own = [parameter for parameter in layer.parameters() if parameter.requires_grad]
        if not all(bool(torch.isfinite(parameter).all()) for parameter in own):
            return name
    return None


def _find(components: Components, rows: StepRows) -> Found | None:
    """The first micro-batch of this process whose forward pass is not finite, else whose backward pass is not."""
    rank = components.engine.rank
    backward = None
    for index, own in enumerate(rows.own(rank)):
        if not own:
            continue
        outcome = rehearse(components, rows.step, rows=rows.alone(rank, index, own), trace=True)
        assert outcome.tracer is not None
        if not math.isfinite(outcome.loss):
            return _blame(Suspect(components, rows, index, own, "forward", outcome.tracer))
        if not outcome.finite and backward is None:
            backward = Suspect(components, rows, index, own, "backward", outcome.tracer)
    return None if backward is None else _blame(backward)


def _blame(suspect: Suspect) -> Found:
    """Who is to blame in a micro-batch that is not finite."""
    components, phase = suspect.components, suspect.phase
    origin = suspect.tracer.origin(phase, head_name(components))
    name = origin.trace.name if origin else None
    evidence, alone = _evidence(suspect, origin), _rows_alone(suspect)
    return Found(suspect.micro_batch, components.engine.rank, phase, _kind(suspect, origin), name, alone, evidence)


def head_name(components: Components) -> str | None:
    """Name of the output layer, which the loss calls as a function."""
    base: Any = components.model.get_base_model()
    head = base.get_output_embeddings()
    return next((name for name, module in traced_modules(components.model).items() if module is head), None)


def _kind(suspect: Suspect, origin: Origin | None) -> Kind:
    weights, components = origin.weights if origin else None, suspect.components
    if weights is not None:
        return Kind.DEAD_ADAPTER if weights == "lora" else Kind.BAD_WEIGHT
    if suspect.phase == "forward":
        return Kind.FORWARD_OVERFLOW
    falls = components.config.training.fp16 and components.loss_scale.dynamic
    return Kind.SCALE_COLLAPSE if falls else Kind.BACKWARD_OVERFLOW


def _evidence(suspect: Suspect, origin: Origin | None) -> dict[str, Any]:
    components, phase = suspect.components, suspect.phase
    evidence: dict[str, Any] = {
        "loss_scale": float(components.loss_scale.scale),
        "dtype": components.config.compute_dtype,
    }
    if origin is None:
        return evidence
    sides, module = origin.trace.sides, origin.trace.module
    before, after = ("in", "out") if phase == "forward" else ("grad_out", "grad_in")
    evidence |= {
        "n": sides[after].n,
        "n_inf": sides[after].n_inf,
        "n_nan": sides[after].n_nan,
        "absmax": sides[after].absmax,
        "input_absmax": sides[before].absmax,
    }
    # what a fused or plain linear does needs no name
    is_linear = isinstance(module, (LoraLayer, torch.nn.Linear))
    if phase == "forward" and not is_linear and bad_weights(module) is None:
        with watch_ops(module) as ops:
            suspect.again(suspect.own)
        if ops.found is not None:
            evidence["op"] = what_op(ops.found.name, type(module).__name__)
    return evidence


def what_op(op: str, module_class: str) -> str:
    """An operation as people call it."""
    name = op.split(".")[1] if op.startswith("aten.") else op
    if "attention" in module_class.lower() and name in ("bmm", "matmul", "baddbmm", "mul"):
        return "attention scores QK^T"
    if "mlp" in module_class.lower() and name == "mul":
        return "gate * up"
    if name in ("add", "add_"):
        return "residual sum"
    return name


def _rows_alone(suspect: Suspect) -> list[int]:
    """Rows that reproduce it without the others of their micro-batch."""
    if len(suspect.own) == 1:
        return [suspect.own[0].row]
    alone = []
    for example in suspect.own:
        outcome = suspect.again([example])
        # a gradient that overflows at a scale that is still falling is another matter than the forward pass
        if not (math.isfinite(outcome.loss) if suspect.phase == "forward" else outcome.finite):
            alone.append(example.row)
    return alone
