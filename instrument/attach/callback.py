"""The instrument inside transformers.Trainer and TRL's SFTTrainer, in two lines.

    from lora_train.instrument import InstrumentCallback
    trainer.add_callback(InstrumentCallback("runs/x"))

It sees the loss that the Trainer's filter would print as 0, before the optimizer has moved anything: without a loss
scaler the step is dropped, so that the adapter stays alive, and with one the scaler skips it. Then the run stops, or
with stop=False goes on and every such step is recorded as what it is.

The loss is the one that accelerate is given for the backward pass, whoever computed it. Other numbers that a Trainer
logs with its loss (rewards, margins, entropy: means since its last log) are columns of the line of that step, and those
that it logs of an evaluation of the line of that.

It only watches: a model of a kind that nobody thought of, a folder that cannot be made, or a disk that fills meanwhile
ends no training; then it says once that nothing more is recorded, and why. What it put on the model and on this Trainer
is taken off when the training ends, by an error or the stop button of a notebook too, or when the callback is
collected.

What is less than in lora-train: rows have no numbers, nothing is replayed or healed, and the host waits for the device
once a step. Of several processes the first one's micro-batches and its share of the gradients are recorded, and nothing
is stopped or dropped: the others would not know.
"""

from __future__ import annotations

import contextlib
import inspect
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..messages import say
from ..read.schema import STEP_COLUMNS
from ..record.hooks.hook import Hook
from ..record.once import run_once
from .instrument import Instrument
from .step import Step
from .trainer import at_any_end, gradients_are_whole, kind_of, leave_one, tell_losses, trainer_of

# What a report shows of TrainingArguments.
SHOWN = (
    "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate", "lr_scheduler_type", "warmup_steps",
    "max_steps", "num_train_epochs", "max_grad_norm", "optim", "seed", "fp16", "bf16", "logging_steps", "eval_strategy",
    "eval_steps", "save_steps", "gradient_checkpointing", "weight_decay",
)  # fmt: skip


class InstrumentCallback(TrainerCallback):
    """Records a Trainer's run in a run folder.

    Attributes:
        instrument: while it trains.
    """

    def __init__(
        self,
        run_dir: str | Path,
        *,
        fuse: bool = False,
        stop: bool = True,
        sites: Sequence[str] = ("*",),
        histogram_every: int = 100,
        probe_every: int = 100,
    ):
        """
        Args:
            run_dir: a new folder; if it holds a run, `<run_dir>-2` and so on is taken.
            fuse: compute the LoRA linears with the fused kernels as well.
            stop: end the training on the step that collapses.
            sites: shell patterns over `<module>:<tensor>` that choose what is recorded, as instrument.sites of a
                configuration.
            histogram_every, probe_every: as instrument.* of a configuration.
        """
        self._run_dir, self._fuse, self._stop, self._sites = run_dir, fuse, stop, sites
        self._histogram_every, self._probe_every = histogram_every, probe_every
        self.instrument: Instrument | None = None
        self._step: Step | None = None
        self._take_off: Callable[[], Any] = _nothing
        self._inputs: list[dict[str, Any]] = []
        self._of_evaluation: dict[str, float] = {}
        self._scaler: Any = None
        self._of: TrainerState | None = None
        self._alone, self._collapsed = True, False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Puts the instrument on the model; once, where it was given to the Trainer twice."""
        if self.instrument is not None and self._of is state:
            return
        trainer = trainer_of(self)
        leave_one(trainer, self)
        self._end()
        self._of = state
        if not state.is_world_process_zero:
            return
        model, self._alone, self._collapsed = kwargs["model"], args.world_size == 1, False
        self._scaler = getattr(kwargs.get("optimizer"), "scaler", None)
        shown = {name: getattr(args, name, None) for name in SHOWN}
        kind = kind_of(trainer, model)
        settings = {"training": {name: _plain(value) for name, value in shown.items()}, "attached": kind}
        try:
            instrument = Instrument(
                model,
                self._run_dir,
                fuse=self._fuse,
                sites=self._sites,
                fp16=self._scaler is not None,
                stops=self._stop and self._alone,
                n_steps=state.global_step,
                gradient_accumulation_steps=args.gradient_accumulation_steps,
                run_once=lambda: _under_autocast(args, model),
                is_last=gradients_are_whole(trainer),
                settings=settings,
                histogram_every=self._histogram_every,
                probe_every=self._probe_every,
            )
        except Exception as error:  # whatever a model of somebody else's raises: it is only watched
            print(say("attach.not_recorded", run=self._run_dir, what=f"{type(error).__name__}: {error}"))
            return
        if getattr(args, "torch_compile", False):
            print(say("attach.compiled"))
        self._put_on(trainer, model, instrument)
        self._started = time.perf_counter()

    def _put_on(self, trainer: Any, model: torch.nn.Module, instrument: Instrument) -> None:
        undo: list[Callable[[], None]] = []
        self.instrument = instrument
        # neither what is on the model nor what is to be undone holds on to the callback
        self._take_off = weakref.finalize(self, _undo, undo, instrument)
        instrument.__enter__()
        undo.append(tell_losses(trainer, self._micro_batch))
        before = weakref.WeakMethod(self._before_forward)
        undo.append(model.register_forward_pre_hook(Hook(_weakly(before)), with_kwargs=True).remove)
        undo += at_any_end(trainer, self._take_off)

    def _end(self) -> None:
        self._take_off()
        self._take_off, self.instrument, self._step, self._inputs = _nothing, None, None, []
        self._of_evaluation = {}

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        """An error of the recording ends the recording and not the training."""
        try:
            yield
        except Exception as error:
            print(say("attach.broke_off", run=self._run_dir, what=f"{type(error).__name__}: {error}"))
            self._end()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begins a step."""
        with self._watching():
            self._evaluated({})
            self._begin_step(state, kwargs)

    def _begin_step(self, state: TrainerState, kwargs: dict[str, Any]) -> None:
        if self.instrument is None:
            return
        scheduler = kwargs.get("lr_scheduler")
        rate = scheduler.get_last_lr()[0] if scheduler is not None else None
        scale = float(self._scaler.get_scale()) if self._scaler is not None else 1.0
        self._step = self.instrument.begin_step(None if rate is None else float(rate), scale, state.epoch)

    def _before_forward(self, model: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if self.instrument is None or self._step is None or self.instrument.recorder.passes.adapter_is_off():
            return
        if model.training and torch.is_grad_enabled() and not _in_backward():
            self._inputs.append(_by_name(model, args) | kwargs if args else kwargs)
            self._step.begin_micro_batch()

    def _micro_batch(self, loss: torch.Tensor) -> None:
        with self._watching():
            if self._step is not None:
                self._step.begin_micro_batch()
                self._step.micro_batch(loss, self._inputs)
                self._inputs = []

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Judges the step before it is applied."""
        with self._watching():
            self._judge(control, kwargs["model"])

    def _judge(self, control: TrainerControl, model: torch.nn.Module) -> None:
        if self.instrument is None or self._step is None:
            return
        step, self._step = self._step, None
        self._inputs = []
        trouble = self.instrument.end_step(step)
        if not self._alone:
            return
        if not step.finite and self._scaler is None:
            for parameter in model.parameters():
                parameter.grad = None  # an optimizer leaves such a parameter alone
        if trouble is not None and self._stop:
            self._collapsed = control.should_training_stop = True

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Adds to the line of a step or an evaluation what a Trainer of another kind measures: rewards, entropy.

        TRL's trainers log more of an evaluation than they hand to on_evaluate, which comes after.
        """
        logs = kwargs.get("logs") or {}
        numbers = _numbers(logs)
        if self.instrument is not None and "loss" in logs:
            with self._watching():
                self.instrument.logged({key: value for key, value in numbers.items() if key not in STEP_COLUMNS})
        elif self.instrument is not None:
            self._of_evaluation |= {key: value for key, value in numbers.items() if key.startswith("eval_")}

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Records an evaluation."""
        with self._watching():
            self._evaluated(_numbers(kwargs.get("metrics") or {}))

    def _evaluated(self, metrics: dict[str, float]) -> None:
        """Records what was logged of an evaluation, together with what its end tells."""
        values, self._of_evaluation = {**self._of_evaluation, **metrics}, {}
        if self.instrument is not None and any(key.startswith("eval_") for key in values):
            self.instrument.evaluation(values)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Takes the instrument off. A training that another callback ended early came to an end too."""
        with self._watching():
            self._evaluated({})
        if self.instrument is not None and not self._collapsed:
            self.instrument.finished(time.perf_counter() - self._started)
        self._end()


def _nothing() -> None:
    return None


def _undo(undo: Sequence[Callable[[], None]], instrument: Instrument) -> None:
    for one in undo:
        one()
    instrument.close()


def _weakly(method: weakref.WeakMethod) -> Callable[..., None]:
    """A hook that calls a method as long as its object lives."""

    def hook(model: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        alive = method()
        if alive is not None:
            alive(model, args, kwargs)

    return hook


def _by_name(model: torch.nn.Module, args: tuple) -> dict[str, Any]:
    """What was handed to a model by its place, under the names of its arguments."""
    named = inspect.signature(model.forward).parameters.values()
    return dict(zip((one.name for one in named if one.kind is one.POSITIONAL_OR_KEYWORD), args, strict=False))


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1  # pyright: ignore[reportAttributeAccessIssue]


def _under_autocast(args: TrainingArguments, model: torch.nn.Module) -> None:
    device = next(model.parameters()).device
    dtype = torch.float16 if args.fp16 else torch.bfloat16 if args.bf16 else None
    context = torch.autocast(device.type, dtype) if dtype is not None else contextlib.nullcontext()
    with context:
        run_once(model, device)


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {key: float(value) for key, value in values.items() if isinstance(value, (int, float))}


def _plain(value: Any) -> Any:
    value = value.value if isinstance(value, Enum) else value
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
