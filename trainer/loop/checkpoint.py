"""Checkpoints: safetensors and JSON only, whole or not there at all.

    checkpoint-500/adapter_model.safetensors, adapter_config.json   peft's format
    checkpoint-500/optimizer.safetensors                            optimizer and loss-scaler state
    checkpoint-500/trainer_state.json                               counters, schema version, config
    checkpoint-500/SHA256SUMS                                       of the other files

Random numbers need no saving: each micro-batch is seeded from (seed, step, micro-batch, rank), and the order of
the rows from (seed, epoch).
"""

from __future__ import annotations

import copy
import itertools
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ...instrument.messages import say
from ..config.names import checkpoint_step
from ..errors import UserError, problem
from ..model.load import trainable
from ..phases import phase
from ..saved.state import Progress, Torn, read_state, state_text
from ..saved.sums import ADAPTER, OPTIMIZER, STATE, write_sums
from .best import follow_metrics
from .components import Components

OLD, PARTIAL = ".old", ".tmp"
# Of a checkpoint, about as long as each other: the adapter, the optimizer's state, the sums, and their way to the disk.
PARTS = 4


class NotFinite(Exception):
    """Adapter or optimizer holds a value that is not finite; nothing was written."""


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Writes the adapter in peft's format, loadable by PeftModel.from_pretrained.

    Raises:
        NotFinite: before anything is written.
    """
    for name, parameter in trainable(model).items():
        if not torch.isfinite(parameter).all():
            raise NotFinite(name)
    # "auto" would ask the hub for the base model's vocabulary
    model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    base: Any = model.get_base_model()
    if (
        getattr(base.config, "problem_type", None) is not None
    ):  # the names of a classifier's labels are in no other file
        own = copy.deepcopy(base.config)
        own.name_or_path = ""
        own.save_pretrained(folder)


def save_checkpoint(
    run_dir: Path,
    components: Components,
    progress: Progress,
    config: dict[str, Any],
    keep: int | None,
    best: Collection[int] = (),
) -> Path:
    """Writes checkpoint-<step> under a temporary name, syncs and renames it, then drops the oldest.

    Whatever ends it before the renaming leaves nothing behind.

    Args:
        config: the settings to go on with.
        keep: how many to keep; None: all.
        best: steps of those that are kept in any case.

    Raises:
        NotFinite: adapter or optimizer is not finite; earlier checkpoints stay.
        OSError: the disk refused; earlier checkpoints stay.
    """
    final = run_dir / f"checkpoint-{progress.step}"
    with phase(say("phase.saving", folder=final.name), PARTS) as advance, partial_folder(final) as partial:
        _write(partial, components, state_text(progress, config), advance)
        commit(partial, final)
    if keep is not None:
        for old in checkpoints(run_dir)[:-keep]:
            if step_of(old) not in best:
                shutil.rmtree(old)
    return final


@contextmanager
def partial_folder(final: Path) -> Iterator[Path]:
    """The temporary name of a folder that is being written; gone afterwards, whatever happens."""
    partial = final.with_name(final.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(folder: Path, components: Components, state: str, advance: Callable[[int], None]) -> None:
    tensors = {f"optimizer.{key}": value for key, value in components.optimizer.state_dict().items()}
    for name, value in tensors.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise NotFinite(name)
    save_adapter(components.model, folder)
    advance(1)
    tensors |= {f"loss_scale.{key}": value for key, value in components.loss_scale.state_dict().items()}
    # cloned: bitsandbytes shares one table between parameters, and safetensors takes no shared memory
    save_file({key: value.detach().cpu().clone() for key, value in tensors.items()}, folder / OPTIMIZER)
    advance(1)
    (folder / STATE).write_text(state, encoding="utf-8")
    write_sums(folder)
    advance(1)


def commit(partial: Path, final: Path) -> None:
    """Syncs a folder's files to disk and gives the folder its final name."""
    for path in [*partial.iterdir(), partial]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    old = final.with_name(final.name + OLD)
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
    partial.rename(final)
    descriptor = os.open(final.parent, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    shutil.rmtree(old, ignore_errors=True)


def checkpoints(run_dir: Path) -> list[Path]:
    """A run's checkpoints, oldest first; unfinished ones are not among them.

    One that a kill left renamed, while it was being replaced, gets its name back.
    """
    for old in run_dir.glob(f"checkpoint-*{OLD}"):
        if not (final := old.with_name(old.name.removesuffix(OLD))).exists():
            old.rename(final)
    found = [path for path in run_dir.glob("checkpoint-*") if checkpoint_step(path.name) is not None and path.is_dir()]
    return sorted(found, key=step_of)


def step_of(folder: Path) -> int:
    """The step of a checkpoint's name."""
    step = checkpoint_step(folder.name)
    assert step is not None
    return step


def set_aside_after(run_dir: Path, step: int, start: int) -> list[Path]:
    """Renames the checkpoints after `step`, an abandoned branch: they are neither resumed nor pruned any more."""
    return [set_aside(path, start) for path in checkpoints(run_dir) if step_of(path) > step]


def set_aside(path: Path, start: int) -> Path:
    """Renames a folder to <name>.start-<start>; where that is taken, to .start-<start>.1, .2 and so on."""
    names = (f"{path.name}.start-{start}" + (f".{n}" if n else "") for n in itertools.count())
    return path.rename(next(free for free in map(path.with_name, names) if not os.path.lexists(free)))


def drop_partial(run_dir: Path) -> None:
    """Removes what a kill left half written; nothing else may be writing there."""
    for partial in [*run_dir.glob(f"checkpoint-*{PARTIAL}"), run_dir / f"adapter{PARTIAL}"]:
        shutil.rmtree(partial, ignore_errors=True)


def load_checkpoint(folder: Path, components: Components) -> Progress:
    """Restores adapter, optimizer and scaler in place and returns where the run stood.

    Raises:
        UserError: the folder is not a checkpoint of this model; nothing was restored.
    """
    try:
        progress, _ = read_state(folder)
        adapter, tensors = load_file(folder / ADAPTER), load_file(folder / OPTIMIZER)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, Torn) as error:
        raise UserError(problem("checkpoint.broken", folder=folder, what=error)) from error
    optimizer, loss_scale = components.optimizer, components.loss_scale
    foreign = differing(adapter_state(components.model), adapter)
    optimizer_state, scale_state = under("optimizer.", tensors), under("loss_scale.", tensors)
    foreign += optimizer.foreign(optimizer_state, progress.step) + differing(loss_scale.state_dict(), scale_state)
    if foreign:
        raise UserError(problem("checkpoint.other_model", folder=folder, what=foreign[0]))
    set_peft_model_state_dict(components.model, adapter)
    optimizer.load_state_dict(optimizer_state)
    loss_scale.load_state_dict(scale_state)
    return progress


def differing(own: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> list[str]:
    """Names that only one of them has, or of another shape or kind of number."""

    def kind(tensor: torch.Tensor | None) -> tuple | None:
        return None if tensor is None else (tensor.shape, tensor.is_floating_point())

    return sorted(name for name in own.keys() | found.keys() if kind(own.get(name)) != kind(found.get(name)))


def restore(components: Components, folder: Path) -> tuple[Components, Progress]:
    """Puts the state of a checkpoint into the components; the order of the rows and the learning rate follow it.

    Raises:
        UserError: the checkpoint is torn or belongs to another model.
    """
    progress = load_checkpoint(folder, components)
    follow_metrics(components, progress.evaluations)
    plan = replace(components.plan, begins_after=progress.data_begins_after)
    return replace(components, plan=plan), progress


def load_adapter(model: PeftModel, folder: Path) -> None:
    """Puts the adapter of a checkpoint into the model."""
    set_peft_model_state_dict(model, load_file(folder / ADAPTER))


def adapter_state(model: PeftModel) -> dict[str, torch.Tensor]:
    """What an adapter file holds, by the names it has there."""
    return get_peft_model_state_dict(model, save_embedding_layers=False)


def under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors whose names begin with the prefix, without it."""
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
