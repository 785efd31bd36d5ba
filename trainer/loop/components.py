"""The parts of a run, built from a configuration: model, adapter, optimizer, order of the rows, and their watchers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from peft import PeftModel

from ...instrument.messages import say
from ...instrument.record.latch import Latch
from ...instrument.record.loss_scale import INITIAL_SCALE, LossScale
from ...instrument.record.patch import Patched, patch
from ...instrument.record.recorder import Recorder
from ..config.schema import Config
from ..console import Console
from ..data.batches import Plan
from ..data.examples import Dataset
from ..errors import UserError, problem
from ..model.fast_path import take_fast_path
from ..model.float32 import matching, widen
from ..model.load import add_lora, autocast, load_base, trainable
from ..model.loss import SupervisedLoss
from .engine import Engine
from .lr_schedule import lr_table
from .optim import Optimizer
from .schedule import Schedule, schedule_of


@dataclass(frozen=True)
class Parts:
    """Everything a step needs."""

    config: Config
    engine: Engine
    model: PeftModel
    loss: SupervisedLoss
    optimizer: Optimizer
    loss_scale: LossScale
    plan: Plan
    pad_token_id: int
    n_steps: int
    patched: Patched
    latch: Latch
    schedule: Schedule
    eval_data: Dataset | None = None
    recorder: Recorder | None = None


def build(
    config: Config, engine: Engine, train_data: Dataset, eval_data: Dataset | None, pad: int, console: Console
) -> Parts:
    """Model, adapter, optimizer and order of a run."""
    training = config.training
    plan = order_of(config, train_data, engine.world_size)
    n_steps = plan.n_steps(training.num_train_epochs, training.max_steps)
    base = load_base(config, engine.device)
    take_fast_path(base)
    model = add_lora(base, config)
    engine.same_everywhere(list(trainable(model).values()))
    wide = matching(model, config.precision.fp32_modules)
    with autocast(config, engine.device):
        patched = patch(model, lambda: run_once(model), alone=wide)
        widen(model, wide)
        loss = SupervisedLoss(model, getattr(torch, config.compute_dtype))
        if config.data.padding_free:
            go_without_padding(loss, config, console)
    for reason in sorted({reason for _, _, reason in patched.unfused}):
        names = [name for name, _, why in patched.unfused if why == reason]
        listed = ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
        console.warn(say("patch.unfused", count=len(names), modules=listed, reason=say(reason)))
    if warning := loss.warning():
        console.warn(warning)
    optimizer = Optimizer(trainable(model), training, lr_table(training, n_steps))
    scale = loss_scale_of(config, engine.device)
    # without loss scaling nothing adapts to a gradient that overflows
    latch = Latch(engine.device) if training.fp16 else Latch(engine.device, patience=1)
    recorder = make_recorder(config, engine, model, patched) if config.instrument.enabled else None
    when = schedule_of(training, n_steps, plan.steps_per_epoch)
    return Parts(
        config, engine, model, loss, optimizer, scale, plan, pad, n_steps, patched, latch, when, eval_data, recorder
    )


def order_of(config: Config, dataset: Dataset, world_size: int) -> Plan:
    """The order of the training rows that the configuration asks for."""
    training = config.training
    seed = training.seed if training.data_seed is None else training.data_seed
    sizes = (training.per_device_train_batch_size, training.gradient_accumulation_steps)
    skip = frozenset(config.data.skip_rows)
    bin_tokens = config.data.cutoff_len if config.data.packing else None
    return Plan(
        dataset, *sizes, seed, world_size, skip, group_by_length=training.group_by_length, bin_tokens=bin_tokens
    )


def go_without_padding(loss: SupervisedLoss, config: Config, console: Console) -> None:
    """Turns to padding-free batches, or says why they stay padded.

    Raises:
        UserError: the model cannot, and bins would be padded to the length of all their rows together.
    """
    reason = loss.without_padding(getattr(torch, config.compute_dtype))
    if reason and config.data.packing:
        raise UserError(problem("data.cannot_pack", reason=say(reason)))
    if reason:
        console.warn(say("padding.padded", reason=say(reason)))


def run_once(model: PeftModel) -> None:
    """One forward on four tokens, in evaluation mode: shows in which order modules run and what they share."""
    training = model.training
    model.eval()
    model(input_ids=torch.arange(4, device=model.device)[None], use_cache=False)
    model.train(training)


def make_recorder(config: Config, engine: Engine, model: PeftModel, patched: Patched) -> Recorder:
    """The recorder that the configuration asks for.

    Raises:
        UserError: instrument.sites matches nothing.
    """
    sites = config.instrument.sites
    with autocast(config, engine.device):
        recorder = Recorder(
            patched,
            list(trainable(model).values()),
            lambda: run_once(model),
            engine.device,
            n_micro_batches=config.training.gradient_accumulation_steps,
            patterns=["*"] if sites == "all" else sites,
            histogram_every=config.instrument.histogram_every,
            model=model,
            probe_every=config.instrument.probe_every,
            float32=matching(model, config.precision.fp32_modules),
            gather=engine.gather if engine.world_size > 1 else None,
        )
    if not recorder.sites:
        raise UserError(problem("instrument.no_sites", patterns=sites))
    return recorder


def loss_scale_of(config: Config, device: torch.device) -> LossScale:
    """The loss scale the configuration asks for: 1 without fp16."""
    precision = config.precision
    if not config.training.fp16:
        return LossScale(device, initial=1.0, dynamic=False)
    if isinstance(precision.loss_scale, str):  # dynamic, or auto
        return LossScale(
            device, initial=max(INITIAL_SCALE, precision.min_loss_scale), min_scale=precision.min_loss_scale
        )
    return LossScale(device, initial=float(precision.loss_scale), dynamic=False)
