"""The runs: each a stock Trainer on a tiny model with one thing done to it, or nothing. Steps are drawn by a seed."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from .truth import Truth


@dataclass(frozen=True)
class Plan:
    """A run to make.

    Attributes:
        name: what is done, and a number.
        truth: what there is to find.
        arguments: of TrainingArguments.
        task: lm, classes, values or grpo.
        scaler: whether torch's loss scaler works as on a GPU with fp16.
        rows, eval_rows: of training and evaluation.
        noise: share of next tokens, or labels, that are drawn at random.
        at: called before each micro-batch with model, batch and step; may change both.
        prepare: called once with the model.
    """

    name: str
    truth: Truth
    arguments: dict[str, Any] = field(default_factory=dict)
    task: str = "lm"
    scaler: bool = False
    rows: int = 256
    eval_rows: int = 0
    noise: float = 0.1
    at: Callable[[Any, dict[str, Any], int], None] | None = None
    prepare: Callable[[Any], None] | None = None


class Switch:
    """A hook that spoils what goes through a module while it is on."""

    def __init__(self, how: str):
        self.how, self.on = how, False

    def forward(self, _module: Any, _inputs: Any, output: Any) -> Any:
        if not self.on or not torch.is_grad_enabled():  # evaluation has rows of its own
            return None
        first = output[0] if isinstance(output, tuple) else output
        if self.how == "forward":
            spoilt = first * float("inf")
        else:
            factor = 0.0 if self.how == "zero" else float("inf")
            spoilt = first.clone()
            spoilt.register_hook(lambda gradient: gradient * factor)
        return (spoilt, *output[1:]) if isinstance(output, tuple) else spoilt


def switched(how: str, when: Callable[[int], bool]) -> dict[str, Any]:
    """What a plan needs to have the output of a layer, or its gradient, spoilt at some steps."""
    switch = Switch(how)

    def prepare(model: Any) -> None:
        where = "lm_head" if how == "zero" else "layers.1"
        spoilt = next(module for name, module in model.named_modules() if name.endswith(where))
        spoilt.register_forward_hook(switch.forward)

    def at(_model: Any, _batch: Any, step: int) -> None:
        switch.on = when(step)

    return {"prepare": prepare, "at": at}


def faulty(number: int, draw: random.Random) -> list[Plan]:
    """One of each fault."""
    steps = draw.randrange(60, 140)
    k = draw.randrange(20, steps - 20)
    every = draw.choice([1, 1, 5])
    common: dict[str, Any] = {"max_steps": steps, "logging_steps": every, "optim": "adamw_torch"}
    broken = switched("forward", lambda step: step >= k)
    some = draw.sample(range(10, steps - 5), 4)
    evals = {"eval_strategy": "steps", "eval_steps": 10}
    return [
        Plan(f"overflow, loss scaler {number}", Truth("forward_nonfinite", "steps", "earlier", k), common, scaler=True,
             **broken),
        Plan(f"overflow, scaler and fused AdamW {number}",
             Truth("forward_nonfinite", "adapter_or_steps", "earlier", k), {**common, "optim": "adamw_torch_fused"},
             scaler=True, **switched("forward", lambda step: step >= k)),
        Plan(f"overflow, no scaler {number}", Truth("forward_nonfinite", "adapter_or_steps", "earlier", k), common,
             **switched("forward", lambda step: step >= k)),
        Plan(f"overflow, unfiltered log {number}", Truth("forward_nonfinite", "adapter_or_steps", "earlier", k),
             {**common, "logging_nan_inf_filter": False}, **switched("forward", lambda step: step >= k)),
        Plan(f"some windows, loss scaler {number}", Truth("forward_nonfinite", "windows", "look_at_rows", min(some)),
             {**common, "logging_steps": 1}, scaler=True, **switched("forward", lambda step: step in some)),
        Plan(f"gradients overflow {number}", Truth("backward_nonfinite", "windows", "earlier", k),
             {**common, "logging_steps": 1}, scaler=True,
             **switched("backward", lambda step: step >= k and step % 3 == k % 3)),
        Plan(f"no gradient {number}", Truth("no_gradient", "everything", "look_at_gradient"), common,
             **switched("zero", lambda step: True)),
        Plan(f"rate too high {number}", Truth("diverged", "since", "lower_rate"),
             {**common, "learning_rate": draw.uniform(2, 6), "lr_scheduler_type": "constant", "max_grad_norm": 0.0}),
        Plan(f"rate too low {number}", Truth("not_learning", "everything", "higher_rate"),
             {**common, "learning_rate": 1e-9, "lr_scheduler_type": "constant"}),
        Plan(f"overfitting {number}", Truth("overfitting", "nothing", "keep_best"),
             {**evals, "max_steps": 300, "logging_steps": 5, "learning_rate": 1e-2}, rows=12, eval_rows=48, noise=1.0),
        Plan(f"known by heart {number}", Truth("by_heart", "nothing", "keep_best"),
             {"max_steps": 400, "logging_steps": 5, "learning_rate": 1e-2}, rows=4, noise=1.0),
    ]  # fmt: skip


def healthy(number: int, draw: random.Random) -> list[Plan]:
    """What looks odd and is not."""
    steps = draw.randrange(80, 160)
    often = {"max_steps": steps, "logging_steps": 1}
    evals = {"eval_strategy": "steps", "eval_steps": 5}
    spike = draw.randrange(30, steps - 10)

    def loud(_model: Any, batch: dict[str, Any], step: int) -> None:
        if step == spike:  # one batch of nonsense
            batch["input_ids"] = batch["input_ids"].flip(1)

    return [
        Plan(f"evaluation wobbles {number}", Truth(),
             {**often, **evals, "max_steps": 250, "lr_scheduler_type": "constant"}, eval_rows=8, noise=0.5),
        Plan(f"restarts {number}", Truth(),
             {**often, "lr_scheduler_type": "cosine_with_restarts", "lr_scheduler_kwargs": {"num_cycles": 4}}),
        Plan(f"GRPO {number}", Truth(), {"max_steps": 30, "logging_steps": 1}, task="grpo"),
        Plan(f"classifier {number}", Truth(), {**often, **evals}, task="classes", eval_rows=64,
             noise=0.0),
        Plan(f"regression {number}", Truth(), {**often, **evals}, task="values", eval_rows=64),
        Plan(f"constant rate {number}", Truth(), {**often, "lr_scheduler_type": "constant"}),
        Plan(f"one odd batch {number}", Truth(), often, at=loud),
        Plan(f"a line in fifty steps {number}", Truth(), {"max_steps": 600, "logging_steps": 50}),
        Plan(f"short {number}", Truth(), {"max_steps": 20, "logging_steps": 1}),
        Plan(f"the scale is searched {number}", Truth(), often, scaler=True,
             **switched("backward", lambda step: step <= draw.choice([2, 3]))),
        Plan(f"converged early {number}", Truth(),
             {"max_steps": 300, "logging_steps": 5, "lr_scheduler_type": "linear", **evals, "eval_steps": 20},
             eval_rows=48),
    ]  # fmt: skip


def plans(seed: int, faults: int = 2, rounds: int = 1) -> list[Plan]:
    """`faults` of every fault and `rounds` of every healthy run."""
    draw = random.Random(seed)
    made = [plan for number in range(1, faults + 1) for plan in faulty(number, draw)]
    return made + [plan for number in range(1, rounds + 1) for plan in healthy(number, draw)]
