"""`lora-train replay RUN --step N --what-if`: the gradients of a step at other loss scales and in other dtypes."""

from __future__ import annotations

from typing import Any

import torch
from rich.cells import cell_len

from ...instrument.messages import say
from ...instrument.record.patch import Group
from ...instrument.record.scales import Counts, count_at_scales
from ...kernels.statistics.tensor_stats import FIELDS, N_FIELDS
from ..console import Console
from ..loop.components import Components
from .rehearse import rehearse
from .remedy import recommended_scale

SCALES = tuple(2.0**power for power in range(0, 25, 4))
_UNDERFLOW = FIELDS.index("n_underflow")


class Watcher:
    """Counts the gradients at every fused LoRA layer (an `Observer` of patch.py)."""

    def __init__(self, scale: float):
        self._scale = scale
        self._seen: list[tuple[str, str, torch.Tensor, Group, int]] = []

    def input(self, group: Group, x: torch.Tensor) -> torch.Tensor:
        view = x.view_as(x)
        if view.requires_grad:
            name, row = "+".join(group.names), 1 + 2 * len(group.names)
            view.register_hook(lambda grad: self._seen.append((name, "grad_in", grad, group, row)))
        return view

    def outputs(self, group: Group, outputs: list[torch.Tensor]) -> list[torch.Tensor]:
        for index, (name, output) in enumerate(zip(group.names, outputs, strict=True)):
            row = 1 + len(group.names) + index
            output.register_hook(lambda grad, n=name, r=row: self._seen.append((n, "grad_out", grad, group, r)))
        return outputs

    def counts(self) -> dict[str, Counts]:
        """By site, in the order of the backward pass."""
        found: dict[str, Counts] = {}
        for name, tensor, gradient, group, row in self._seen:
            assert group.slot is not None
            lost = float(group.slot[row, _UNDERFLOW])
            # a gradient arrives at a layer as it was rounded before, and was counted there
            known = 0 if tensor == "grad_out" else None if lost != lost else int(lost)
            counts = count_at_scales(gradient, self._scale, SCALES, known)
            site = f"{name}:{tensor}"
            found[site] = found[site] + counts if site in found else counts
        return found


def gradient_counts(components: Components, step: int) -> dict[str, Counts]:
    """Counts of every gradient site of a step, by name."""
    watcher = Watcher(float(components.loss_scale.scale))
    for group in components.patched.groups:
        device = components.engine.device
        group.slot = torch.full((2 + 4 * len(group.names), N_FIELDS), torch.nan, dtype=torch.float64, device=device)
        group.observer = watcher
    try:
        rehearse(components, step)
        return watcher.counts()
    finally:
        for group in components.patched.groups:
            group.slot = group.observer = None


def what_if(components: Components, step: int, console: Console) -> None:
    """Prints the table and the scale that is recommended."""
    if not components.config.training.fp16:
        console.line(say("what_if.not_fp16"))
        return
    counts = gradient_counts(components, step)
    current = float(components.loss_scale.scale)
    console.line(say("what_if.title", step=step, scale=current))
    total = sum(counts.values(), start=_nothing())
    widest = max((cell_len(site) for site in counts), default=0)
    heads = [f"2^{int(torch.tensor(scale).log2())}" for scale in SCALES] + ["bf16", "e4m3", "e5m2"]
    console.line("  " + " " * widest + "".join(f"{head:>14}" for head in heads))
    for site, row in [*counts.items(), (say("what_if.all"), total)]:
        console.line("  " + site + " " * (widest - cell_len(site)) + "".join(f"{cell:>14}" for cell in _cells(row)))
    better = recommended_scale(components, step)
    if better is None:
        console.line(say("what_if.none"))
    else:
        console.line(say("what_if.recommended", scale=better))


def _nothing() -> Counts:
    zeros = (0,) * len(SCALES)
    return Counts(0, zeros, zeros, (0, 0), (0, 0), (0, 0))


def _cells(counts: Counts) -> list[str]:
    pairs: list[Any] = [*zip(counts.overflow, counts.underflow, strict=True), counts.bf16, counts.e4m3, counts.e5m2]
    return [f"{_share(over, counts.n)}/{_share(under, counts.n)}" for over, under in pairs]


def _share(count: int, n: int) -> str:
    return "0" if count == 0 else f"{100 * count / max(n, 1):.2g}%"
