"""Checkpoints: safetensors and JSON only, whole or not there at all.

    checkpoint-500/adapter_model.safetensors, adapter_config.json   peft's format
    checkpoint-500/optimizer.safetensors                            optimizer and loss-scaler state
    checkpoint-500/trainer_state.json                               counters, schema version, config

Random numbers need no saving: each micro-batch is seeded from (seed, step, micro-batch, rank), and the order of
the rows from (seed, epoch).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ...instrument.read.store import SCHEMA_VERSION
from ..config.names import checkpoint_step
from ..errors import UserError, problem
from ..model.load import trainable
from .best import follow_metrics
from .components import Components

OPTIMIZER = "optimizer.safetensors"
STATE = "trainer_state.json"
ADAPTER = "adapter_model.safetensors"
OLD = ".old"


@dataclass
class Progress:
    """Where a run stands, as plain numbers.

    Attributes:
        step: attempted optimizer steps.
        start: resumes so far.
        skipped: steps whose gradients were not finite.
        train_seconds: spent in steps, over all starts; likewise evaluation and saving.
        final_loss: of the last step, None where it was not finite.
        heals: {"step", "kind", "module", "settings", "before"} for each collapse the run went on from.
        evaluations: (step, metric_for_best_model) of each evaluation. Lists are replaced, never changed.
        data_begins_after: the step after which the rows began from the first again (training.ignore_data_skip).
    """

    step: int = 0
    start: int = 0
    skipped: int = 0
    train_seconds: float = 0.0
    eval_seconds_total: float = 0.0
    save_seconds_total: float = 0.0
    final_loss: float | None = None
    heals: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[tuple[int, float]] = field(default_factory=list)
    data_begins_after: int = 0


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


def save_checkpoint(
    run_dir: Path,
    components: Components,
    progress: Progress,
    config: dict[str, Any],
    keep: int | None,
    best: int | None = None,
) -> Path:
    """Writes checkpoint-<step> under a temporary name, syncs and renames it, then drops the oldest.

    Args:
        config: the settings to go on with.
        keep: how many to keep; None: all.
        best: step of one that is kept in any case.

    Raises:
        NotFinite: adapter or optimizer is not finite; earlier checkpoints stay.
        OSError: the disk refused; earlier checkpoints stay.
    """
    final = run_dir / f"checkpoint-{progress.step}"
    partial = final.with_name(final.name + ".tmp")
    shutil.rmtree(partial, ignore_errors=True)
    tensors = {f"optimizer.{key}": value for key, value in components.optimizer.state_dict().items()}
    for name, value in tensors.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise NotFinite(name)
    save_adapter(components.model, partial)
    tensors |= {f"loss_scale.{key}": value for key, value in components.loss_scale.state_dict().items()}
    # cloned: bitsandbytes shares one table between parameters, and safetensors takes no shared memory
    save_file({key: value.detach().cpu().clone() for key, value in tensors.items()}, partial / OPTIMIZER)
    state = {"schema_version": SCHEMA_VERSION, **asdict(progress), "config": config}
    (partial / STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
    commit(partial, final)
    if keep is not None:
        for old in checkpoints(run_dir)[:-keep]:
            if old.name != f"checkpoint-{best}":
                shutil.rmtree(old)
    return final


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
    later = [path for path in checkpoints(run_dir) if step_of(path) > step]
    return [path.rename(path.with_name(f"{path.name}.start-{start}")) for path in later]


def load_checkpoint(folder: Path, components: Components) -> Progress:
    """Restores adapter, optimizer and scaler in place and returns where the run stood.

    Raises:
        UserError: the folder is not a whole checkpoint of this model; nothing was restored.
    """
    try:
        adapter = load_file(folder / ADAPTER)
        tensors = load_file(folder / OPTIMIZER)
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        added_later = {"heals": [], "evaluations": [], "data_begins_after": 0}
        progress = Progress(**{key: (added_later | state)[key] for key in Progress.__dataclass_fields__})
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(problem("checkpoint.broken", folder=folder, what=error)) from error
    optimizer, loss_scale = components.optimizer, components.loss_scale
    own = {name: tensor.shape for name, tensor in adapter_state(components.model).items()}
    found = {name: tensor.shape for name, tensor in adapter.items()}
    foreign = sorted(name for name in own.keys() | found.keys() if own.get(name) != found.get(name))
    optimizer_state, scale_state = under("optimizer.", tensors), under("loss_scale.", tensors)
    foreign += optimizer.foreign(optimizer_state) + sorted(loss_scale.state_dict().keys() - scale_state.keys())
    if foreign:
        raise UserError(problem("checkpoint.other_model", folder=folder, what=foreign[0]))
    set_peft_model_state_dict(components.model, adapter)
    optimizer.load_state_dict(optimizer_state)
    loss_scale.load_state_dict(scale_state)
    return progress


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
