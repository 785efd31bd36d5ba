"""The components of a run, built from a configuration: model, adapter, optimizer, order of the rows, their watchers."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from ...instrument.messages import say
from ...instrument.record.latch import Latch
from ...instrument.record.loss_scale import INITIAL_SCALE, LossScale
from ...instrument.record.once import run_once
from ...instrument.record.patch import Patched
from ...instrument.record.recorder import Recorder
from ...instrument.record.rows.gradients import RowWatching
from ...instrument.record.sites import Watching
from ..config.schema import Config
from ..console import Console
from ..data.batches import Plan
from ..data.examples import Dataset
from ..errors import UserError, problem
from ..metrics.own import Function, own_function
from ..model.build import Built, build_model
from ..model.classify import ClassifierLoss, head_of_config, use_padding
from ..model.float32 import matching
from ..model.load import autocast, load_base, trainable
from ..model.loss import SupervisedLoss
from .engine import Engine
from .lr_schedule import lr_table
from .optim import Optimizer
from .schedule import Schedule, schedule_of


@dataclass(frozen=True)
class Components:
    """Everything a step needs."""

    config: Config
    engine: Engine
    model: PeftModel
    loss: SupervisedLoss | ClassifierLoss
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
    own_metrics: Function | None = None


@dataclass(frozen=True)
class Weights:
    """Loads a run's model from disk or hub (a `Loader` of model/build.py)."""

    config: Config
    engine: Engine
    console: Console

    def load(self) -> PreTrainedModel:
        return load_base(self.config, self.engine.device, head_of_config(self.config))

    def making(self) -> AbstractContextManager:
        return nullcontext()

    def running(self) -> AbstractContextManager:
        return nullcontext()

    def complete(self, model: PeftModel) -> None:
        """Every process begins with rank 0's adapter."""
        self.engine.same_everywhere(list(trainable(model).values()))

    def transforms_logits(self) -> None:
        return None

    def remove_padding(self, loss: SupervisedLoss) -> None:
        """Turns to padding-free batches, or says why they stay padded.

        Raises:
            UserError: the model cannot, and bins would be padded to the length of all their rows together.
        """
        reason = loss.without_padding(getattr(torch, self.config.compute_dtype))
        if reason and self.config.data.packing:
            raise UserError(problem("data.cannot_pack", reason=say(reason)))
        if reason:
            self.console.warn(say("padding.padded", reason=say(reason)))


def build(
    config: Config, engine: Engine, train_data: Dataset, eval_data: Dataset | None, pad: int, console: Console
) -> Components:
    """Model, adapter, optimizer and order of a run."""
    training = config.training
    plan = order_of(config, train_data, engine.world_size)
    n_steps = plan.n_steps(training.num_train_epochs, training.max_steps)
    built = build_model(config, engine.device, Weights(config, engine, console))
    if config.is_classifier:
        use_padding(built.model, pad)
    warn_of(built, console)
    parameters = trainable(built.model)
    return Components(
        config=config,
        engine=engine,
        model=built.model,
        loss=built.loss,
        optimizer=Optimizer(parameters, training, lr_table(training, n_steps)),
        loss_scale=loss_scale_of(config, engine.device),
        plan=plan,
        pad_token_id=pad,
        n_steps=n_steps,
        patched=built.patched,
        # without loss scaling nothing adapts to a gradient that overflows
        latch=Latch(engine.device) if training.fp16 else Latch(engine.device, patience=1),
        schedule=schedule_of(training, n_steps, plan.steps_per_epoch),
        eval_data=eval_data,
        recorder=make_recorder(config, engine, built, plan) if config.instrument.enabled else None,
        own_metrics=own_function(config),
    )


def warn_of(built: Built, console: Console) -> None:
    """Says what of the model takes a slower way."""
    for reason in sorted({reason for _, _, reason in built.patched.unfused}):
        names = [name for name, _, why in built.patched.unfused if why == reason]
        listed = ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
        console.warn(say("patch.unfused", count=len(names), modules=listed, reason=say(reason)))
    if warning := built.loss.warning():
        console.warn(warning)


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


def make_recorder(config: Config, engine: Engine, built: Built, plan: Plan) -> Recorder:
    """The recorder that the configuration asks for.

    Args:
        plan: how many rows and micro-batches there are at most.

    Raises:
        UserError: instrument.sites matches nothing.
    """
    sites, model, keys = config.instrument.sites, built.model, config.instrument
    gather = engine.gather if engine.world_size > 1 else None
    n_micro = plan.most_micro_batches
    watching = Watching(
        n_micro,
        histogram_every=config.instrument.histogram_every,
        probe_every=config.instrument.probe_every,
        model=model,
        patterns=["*"] if sites == "all" else sites,
        float32=matching(model, config.precision.fp32_modules),
        gather=gather,
        rows=RowWatching(n_micro, plan.most_rows, keys.rows_every, keys.row_modules, gather) if keys.rows else None,
        micro_gradients=config.is_classifier,
    )
    with autocast(config, engine.device):
        recorder = Recorder(
            built.patched,
            list(trainable(model).values()),
            lambda: run_once(model),
            engine.device,
            watching,
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
