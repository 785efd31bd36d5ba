"""Breaks something in a run just before one of its steps, and knows what is to be found.

What happens here happens once: a run that was healed goes on without it. What comes back in every start, a weight of
the frozen model, is in the model on disk (weights.py).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from lora_train.instrument.judge.detect import WINDOW
from lora_train.instrument.record.latch import PATIENCE
from lora_train.instrument.record.trace import traced_modules
from lora_train.trainer.config.schema import Config
from lora_train.trainer.data import batches
from lora_train.trainer.data.batches import Plan, StepRows
from lora_train.trainer.loop import train as loop
from lora_train.trainer.loop.components import Components
from lora_train.trainer.loop.lr_schedule import lr_table

from .draw import Case


@dataclass
class Expected:
    """What is to be found.

    Attributes:
        kind: as in instrument/judge/detect.py.
        module: its name; None where any module of the model, or none, will do.
        steps: first and last step that may be named.
        bad_rows, good_rows: rows that must, and must not, be among those that alone reproduce it.
        no_remedy: why nothing that can be tried helps, where that is so.
    """

    kind: str
    module: str | None
    steps: tuple[int, int]
    bad_rows: set[int] = field(default_factory=set)
    good_rows: set[int] = field(default_factory=set)
    no_remedy: str = ""


class Plant:
    """One case's fault, in all starts of one run.

    Attributes:
        expected: what is to be found.
        modules: names of the model's modules, once a step has run.
    """

    def __init__(self, case: Case):
        self._case, self._rng = case, random.Random(case.seed)
        self._done = False
        self.modules: set[str] = set()
        first = case.step + (PATIENCE - 1 if case.fault == "high_scale" else 0)
        last = first + (WINDOW if case.fault == "learning_rate" else 0)
        self.expected = Expected(case.kind or "", case.module, (first, last))

    @torch.no_grad()
    def before_step(self, components: Components, step: int) -> None:
        """Breaks what is to break at this step, once."""
        case = self._case
        self.modules = self.modules or set(traced_modules(components.model))
        if self._done or step < (1 if case.fault in ("high_floor", None) else case.step):
            return
        self._done = True
        if case.fault == "lora_weight":
            layer: Any = traced_modules(components.model)[case.module or ""]
            weight = self._rng.choice((layer.lora_A, layer.lora_B))["default"].weight
            weight.view(-1)[self._rng.randrange(weight.numel())] = case.size
        elif case.fault == "no_labels":
            for example in components.plan.rows(step).examples:
                example.supervised[:] = False
        elif case.fault == "learning_rate" and step > 1:  # else the configuration has it
            training = components.config.training
            components.optimizer.follow([rate * case.size for rate in lr_table(training, components.n_steps)])
        elif case.fault in ("high_scale", "low_scale") or (case.fault is None and case.size):
            components.loss_scale.scale.fill_(case.size)
        elif case.fault == "high_floor":
            components.loss_scale.scale.mul_(2.0**case.size)


@contextmanager
def planted(plant: Plant) -> Iterator[None]:
    """While it lasts, runs in this process meet the fault."""
    real = loop.train_step

    def train_step(components: Components, rows: StepRows) -> torch.Tensor:
        plant.before_step(components, rows.step)
        return real(components, rows)

    with mock.patch.object(loop, "train_step", train_step):
        yield


@contextmanager
def by_length(config: Config, plan: Plan) -> Iterator[None]:
    """While it lasts, rows come from the shortest to the longest, 64 at a time, as with group_by_length."""
    real = batches.epoch_order
    lengths = [len(example.input_ids) for example in plan.dataset.examples]

    def epoch_order(n_rows: int, seed: int, epoch: int) -> tuple[int, ...]:
        order = real(n_rows, seed, epoch)
        groups = (sorted(order[start : start + 64], key=lambda i: lengths[i]) for start in range(0, n_rows, 64))
        return tuple(index for group in groups for index in group)

    with mock.patch.object(batches, "epoch_order", epoch_order):
        yield
