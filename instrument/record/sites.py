"""Which tensors are watched, and their stable names: `<module>:<tensor>`.

A group of modules that read the same input has one `in` and one `grad_in`, named after all of them:
`layers.0.self_attn.q_proj+k_proj+v_proj:grad_in`. Every other site belongs to one module, named as in the base model.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from ...kernels.lora_linear import site_names
from ..read.store import Site
from .patch import Group, Layer, Patched
from .rows.gradients import RowWatching
from .served import lora_parameter

GRADIENTS = ("lora_A.grad", "lora_B.grad")
# Of a LoRA module on PEFT's path, read by hooks.
UNFUSED_TENSORS = ("in", "out", "grad_out", "grad_in", *GRADIENTS)


@dataclass(frozen=True)
class Watching:
    """What a recorder looks at, and how often.

    Attributes:
        n_micro_batches: the most micro-batches one step has on this process.
        histogram_every: every so many steps exponents are counted; 0: never.
        probe_every: every so many steps the outputs of the modules without LoRA are looked at in the first
            micro-batch; 0: never.
        model: with the modules to probe; needed if probe_every > 0.
        patterns: which sites to keep, see `sites.selected`.
        float32: names of modules that compute in float32 whatever autocast says, with all that is in them.
        guarded: wraps what reads a tensor of a pass.
        gather: stacks a tensor of every process, [W, ...]; None for one process.
        rows: which training rows there are; None: they are not told apart.
        micro_gradients: whether what each micro-batch adds to a trained parameter without LoRA is read too: one more
            pass over its gradient.
    """

    n_micro_batches: int
    histogram_every: int = 0
    probe_every: int = 0
    model: nn.Module | None = None
    patterns: Sequence[str] = ("*",)
    float32: Collection[str] = ()
    guarded: Callable[[Callable[..., None]], Callable[..., None]] = lambda reads: reads
    gather: Callable[[torch.Tensor], torch.Tensor] | None = None
    rows: RowWatching | None = None
    micro_gradients: bool = False


def joined_name(names: Sequence[str]) -> str:
    """One name for modules of a group: `a.q_proj`, `a.k_proj` -> `a.q_proj+k_proj`."""
    parents = {name.rpartition(".")[0] for name in names}
    if len(names) == 1 or len(parents) > 1:
        return "+".join(names)
    return names[0] + "".join("+" + name.rpartition(".")[2] for name in names[1:])


def group_sites(group: Group, first_id: int, order: int) -> list[Site]:
    """The sites of a fused group, one for each row of its slot, in that order."""
    sites = []
    for tensor, projection in site_names(len(group.names)):
        module = joined_name(group.names) if projection is None else group.names[projection]
        shape, dtype = _shape(group.modules[projection or 0], tensor)
        sites.append(Site(first_id + len(sites), module, tensor, shape, dtype, order))
    return sites


def module_sites(name: str, module: nn.Module, first_id: int, order: int) -> list[Site]:
    """The sites of a LoRA module that stays on PEFT's path; an embedding reads integers, which have no statistics."""
    reads_ids = isinstance(_base(module), nn.Embedding)
    sites = []
    for tensor in UNFUSED_TENSORS:
        if not (reads_ids and tensor in ("in", "grad_in")):
            shape, dtype = _shape(module, tensor)
            sites.append(Site(first_id + len(sites), name, tensor, shape, dtype, order))
    return sites


def layer_sites(layer: Layer, first_id: int, order: int) -> list[Site]:
    """The sites of a module without LoRA: what its hooks read, then the gradients of what is trained in it."""
    reads_ids = isinstance(_base(layer.module), nn.Embedding)
    hooked = [tensor for tensor in layer.tensors if not (reads_ids and tensor in ("in", "grad_in"))]
    shapes = [(tensor, *_shape(layer.module, tensor)) for tensor in hooked]
    for tensor, parameter in layer.parameters.items():
        shapes.append((tensor, tuple(parameter.shape), str(parameter.dtype).removeprefix("torch.")))
    return [Site(first_id + at, layer.name, *shape, order) for at, shape in enumerate(shapes)]


def gradient_pairs(
    sites: Sequence[Site],
    patched: Patched,
    others: Mapping[int, nn.Parameter],
    parameters: Sequence[nn.Parameter],
) -> list[tuple[int, int]]:
    """The id of every gradient's site with the position of its parameter; those of the adapters active now.

    Args:
        others: parameters without LoRA by the id of their site.
        parameters: the trained ones.
    """
    position = {id(parameter): index for index, parameter in enumerate(parameters)}
    modules = {name: m for group in patched.groups for name, m in zip(group.names, group.modules, strict=True)}
    modules |= {name: module for name, module, _ in patched.unfused}
    pairs = []
    for site in sites:
        found: list[nn.Parameter | None] = [others.get(site.id)]
        if site.module in modules and site.tensor in GRADIENTS and found == [None]:
            layer: Any = modules[site.module]
            found = [lora_parameter(layer, site.tensor.removesuffix(".grad"), a) for a in layer.active_adapters]
        trained = [position[id(parameter)] for parameter in found if id(parameter) in position]
        if trained:
            pairs.append((site.id, trained[0]))
    return pairs


def in_float32(site: Site, modules: Collection[str]) -> Site:
    """The site as it is if one of these modules, or what is in them, computes in float32 under autocast."""
    wide = any(site.module == name or site.module.startswith(f"{name}.") for name in modules)
    return replace(site, dtype="float32") if wide else site


def _shape(layer, tensor: str) -> tuple[tuple[int, ...] | None, str]:
    """Shape of a parameter, and of an activation its last dimension alone; dtype, where it is known beforehand."""
    if tensor in GRADIENTS:
        sides = [lora_parameter(layer, tensor.removesuffix(".grad"), adapter) for adapter in layer.active_adapters]
        weight = next((parameter for parameter in sides if parameter is not None), None)
        return (None, "float32") if weight is None else (tuple(weight.shape), str(weight.dtype).removeprefix("torch."))
    last = isinstance(_base(layer), (nn.Linear, nn.Embedding, Conv1D))  # a convolution's last dimension is a place
    width = _width(layer, "in" if tensor in ("in", "grad_in") else "out")
    weight = next(_base(layer).parameters(), None)
    device = "cpu" if weight is None else weight.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    dtype = dtype or _storage(layer, weight)
    return (width,) if last and width is not None else None, str(dtype).removeprefix("torch.")


def _width(layer, side: str) -> int | None:
    """Of a layer's input or output; None where the layer does not say."""
    if isinstance(layer, Conv1D):
        return layer.nx if side == "in" else layer.nf
    return getattr(layer, f"{side}_features", None)


def _base(layer) -> nn.Module:
    return layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer


def _storage(layer, weight: torch.Tensor | None) -> torch.dtype | None:
    own = getattr(_base(layer), "weight", weight)
    return own.dtype if own is not None and own.is_floating_point() else getattr(_base(layer), "compute_dtype", None)


def selected(sites: Sequence[Site], patterns: Sequence[str]) -> list[bool]:
    """Which sites the patterns choose.

    Args:
        patterns: shell patterns over `<module>:<tensor>`; one that begins with `!` excludes. The last that matches a
            site decides; if the first pattern excludes, all sites are in to begin with.
    """
    begin = bool(patterns) and patterns[0].startswith("!")
    chosen = []
    for site in sites:
        keep = begin
        for pattern in patterns:
            if fnmatch.fnmatchcase(site.name, pattern.removeprefix("!")):
                keep = not pattern.startswith("!")
        chosen.append(keep)
    return chosen
