"""Runs a step that went wrong again and says what, where and which rows.

The state must be that of the step: the latch has kept it. Every process runs its own rows; what they find is put
together, and the lowest micro-batch and rank decide.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import LoraLayer

from ...instrument.judge.detect import Diagnosis, Trouble
from ...instrument.record.trace import Origin, Tracer, bad_weights, traced_modules, watch_ops
from ..data.examples import Example
from ..loop.components import Parts
from ..loop.optim import has_non_finite
from ..loop.train import micro_batch_loss
from ..model.load import trainable

PHASES = {
    "dead_adapter": "optimizer",
    "divergence": "optimizer",
    "no_supervised_tokens": "data",
    "forward_overflow": "forward",
    "bad_weight": "forward",
}


@dataclass(frozen=True)
class Found:
    """What one process found, as plain values."""

    micro_batch: int
    rank: int
    phase: str
    kind: str
    module: str | None
    rows_alone: list[int]
    evidence: dict[str, Any]


def diagnose(parts: Parts, trouble: Trouble) -> Diagnosis:
    """What was wrong with the step; the adapter is not touched."""
    micro_batches = parts.plan.step(trouble.step)
    rows = [example.row for examples in micro_batches for example in examples]
    if trouble.kind is not None:
        phase = PHASES.get(trouble.kind, "backward")
        return Diagnosis(trouble.kind, trouble.step, trouble.module, phase, rows, dict(trouble.evidence))
    n_supervised = sum(example.n_supervised for examples in micro_batches for example in examples)
    adapter = adapter_facts(parts)
    if n_supervised == 0:
        evidence = {"n_supervised": 0, **adapter}
        return Diagnosis("no_supervised_tokens", trouble.step, None, "data", rows, evidence)
    dead = dead_module(parts)
    if dead is not None:  # whatever came of it, and wherever: softmax hides an infinite score in the forward pass
        return Diagnosis("dead_adapter", trouble.step, dead, PHASES["dead_adapter"], rows, adapter)
    found = [item for item in parts.engine.gather_objects(_find(parts, trouble.step, n_supervised)) if item]
    if not found:  # the step is healthy when it runs again: not the numbers, the machine
        return Diagnosis("not_reproduced", trouble.step, None, "forward", rows, adapter)
    # a gradient that overflows while the scale still falls is no trouble beside a forward pass that does
    first = min(found, key=lambda item: (item.phase != "forward", item.micro_batch, item.rank))
    same = [item for item in found if (item.phase, item.micro_batch) == (first.phase, first.micro_batch)]
    alone = sorted({row for item in same for row in item.rows_alone})
    evidence = {**first.evidence, "micro_batch": first.micro_batch, "rows_alone": alone, **adapter}
    return Diagnosis(first.kind, trouble.step, first.module, PHASES.get(first.kind, "backward"), rows, evidence)


def adapter_facts(parts: Parts) -> dict[str, int]:
    """How many values the adapter has and how many of them are not finite."""
    parameters = list(trainable(parts.model).values())
    return {
        "adapter_values": sum(p.numel() for p in parameters),
        "adapter_nonfinite": sum(int((~torch.isfinite(p)).sum()) for p in parameters),
    }


def dead_module(parts: Parts) -> str | None:
    """The first LoRA module, in forward order, with a weight that is not finite."""
    groups = [zip(group.names, group.modules, strict=True) for group in parts.patched.groups]
    layers = [pair for group in groups for pair in group] + [(name, layer) for name, layer, _ in parts.patched.unfused]
    for name, layer in layers:
        own = [parameter for parameter in layer.parameters() if parameter.requires_grad]
        if not all(bool(torch.isfinite(parameter).all()) for parameter in own):
            return name
    return None


def _find(parts: Parts, step: int, n_supervised: int) -> Found | None:
    """The first micro-batch of this process whose forward pass is not finite, else whose backward pass is not."""
    backward = None
    for index, own in enumerate(parts.plan.own(step, parts.engine.rank)):
        if not own:
            continue
        tracer = Tracer(parts.model, parts.patched.groups, getattr(torch, parts.config.compute_dtype))
        with tracer.active():
            loss, finite = run(parts, step, index, own, n_supervised)
        if not math.isfinite(loss):
            return _blame(parts, step, index, own, n_supervised, tracer, "forward")
        if not finite and backward is None:
            backward = index, own, tracer
    if backward is None:
        return None
    index, own, tracer = backward
    return _blame(parts, step, index, own, n_supervised, tracer, "backward")


def _blame(
    parts: Parts, step: int, index: int, own: list[Example], n_supervised: int, tracer: Tracer, phase: str
) -> Found:
    """Who is to blame in a micro-batch that is not finite."""
    origin = tracer.origin(phase, head_name(parts))
    kind = _kind(parts, origin, phase)
    evidence = _evidence(parts, step, index, own, n_supervised, origin, phase)
    alone = _rows_alone(parts, step, index, own, n_supervised, phase)
    return Found(index, parts.engine.rank, phase, kind, origin.trace.name if origin else None, alone, evidence)


def run(parts: Parts, step: int, index: int, own: list[Example], n_supervised: int) -> tuple[float, bool]:
    """Loss sum of one micro-batch's rows, and whether it and its gradients are finite; the gradients are dropped."""
    loss = micro_batch_loss(parts, step, index, own)
    (loss / n_supervised * parts.loss_scale.scale).backward()
    bad = bool(has_non_finite(parts.optimizer.gradient_rows()))
    parts.optimizer.clear()
    return float(loss.detach()), math.isfinite(float(loss.detach())) and not bad


def head_name(parts: Parts) -> str | None:
    """Name of the output layer, which the loss calls as a function."""
    base: Any = parts.model.get_base_model()
    head = base.get_output_embeddings()
    return next((name for name, module in traced_modules(parts.model).items() if module is head), None)


def _kind(parts: Parts, origin: Origin | None, phase: str) -> str:
    weights = origin.weights if origin else None
    if weights is not None:
        return "dead_adapter" if weights == "lora" else "bad_weight"
    if phase == "forward":
        return "forward_overflow"
    return "scale_collapse" if parts.config.training.fp16 and parts.loss_scale.dynamic else "backward_overflow"


def _evidence(
    parts: Parts, step: int, index: int, own: list[Example], n_supervised: int, origin: Origin | None, phase: str
) -> dict[str, Any]:
    evidence: dict[str, Any] = {"loss_scale": float(parts.loss_scale.scale), "dtype": parts.config.compute_dtype}
    if origin is None:
        return evidence
    sides = origin.trace.sides
    before, after = ("in", "out") if phase == "forward" else ("grad_out", "grad_in")
    evidence |= {
        "n": sides[after].n,
        "n_inf": sides[after].n_inf,
        "n_nan": sides[after].n_nan,
        "absmax": sides[after].absmax,
        "input_absmax": sides[before].absmax,
    }
    # what a fused or plain linear does needs no name
    is_linear = isinstance(origin.trace.module, (LoraLayer, torch.nn.Linear))
    if phase == "forward" and not is_linear and bad_weights(origin.trace.module) is None:
        with watch_ops(origin.trace.module) as ops:
            run(parts, step, index, own, n_supervised)
        if ops.found is not None:
            evidence["op"] = what_op(ops.found.name, type(origin.trace.module).__name__)
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


def _rows_alone(parts: Parts, step: int, index: int, own: list[Example], n_supervised: int, phase: str) -> list[int]:
    """Rows that reproduce it without the others of their micro-batch."""
    if len(own) == 1:
        return [own[0].row]
    alone = []
    for example in own:
        loss, finite = run(parts, step, index, [example], n_supervised)
        # a gradient that overflows at a scale that is still falling is another matter than the forward pass
        if not (math.isfinite(loss) if phase == "forward" else finite):
            alone.append(example.row)
    return alone
