"""Settings that popular advice gets wrong, found before a step is trained; each with the number that shows it.

    few_updates        fewer than 100 optimizer steps in all
    batch_over_data    a step asks for more rows than there are
    many_epochs        more than 5 passes over the rows without an evaluation
    warm_up_share      more than a fifth of the run in warm-up, of a share that may have been meant as something else
    rate               outside what the optimizer bears, with LoRA or with layers that are trained in full
    dear_evaluation    the evaluations compute more than the training
    late_save          the first checkpoint would be due after the end
    no_choice          the best evaluation is asked for, and one alone is made
    fp16               float16 on a device that has bfloat16
    clipping           first_steps.py: known only once norms are there

Nothing here stops a run. What a configuration cannot tell (rows that were not read yet) is None, and is not judged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ...instrument.messages import say
from ..config.schema import Config

# An adapter begins at B = 0 and Adam moves a weight by about the rate at a step: below this it has hardly left.
UPDATES = {"adam": 100, "sgd": 300}
EPOCHS = 5
WARM_UP = 0.2
# Peak rates that are usual: of LoRA with Adam from 1e-5 to 1e-3 (the papers of LoRA and QLoRA, Biderman et al. 2024);
# layers trained in full bear a tenth of that; plain gradient descent needs rates larger by orders.
RATES = {
    ("adam", True): (1e-5, 1e-3),
    ("adam", False): (1e-6, 2e-4),
    ("sgd", True): (1e-3, 10.0),
    ("sgd", False): (1e-4, 1.0),
}
# A forward pass is about a third of a step.
FORWARD = 1 / 3


@dataclass(frozen=True)
class Outlook:
    """What a run is about to do; None where it is not known.

    Attributes:
        n_steps: optimizer steps.
        steps_per_epoch: of them in a pass over the rows.
        units, units_per_step: rows (or bins) there are, and that a step takes on all processes.
        warm_up: steps.
        train_tokens, eval_tokens: of a pass over the training rows, of one evaluation.
        n_evals: evaluations in the run.
        save_every: steps between checkpoints; inf for never.
        has_bf16: whether the device computes in bfloat16 natively.
    """

    n_steps: int | None = None
    steps_per_epoch: float | None = None
    units: int | None = None
    units_per_step: int | None = None
    warm_up: int | None = None
    train_tokens: int | None = None
    eval_tokens: int | None = None
    n_evals: int | None = None
    save_every: float | None = None
    has_bf16: bool | None = None


def family(config: Config) -> str:
    """Optimizers that need rates of one order."""
    return "sgd" if config.training.optim == "sgd" else "adam"


def _few_updates(config: Config, outlook: Outlook) -> str | None:
    least = UPDATES[family(config)]
    if outlook.n_steps is None or outlook.n_steps >= least:
        return None
    rows = outlook.units_per_step or 1
    # with one row a step there would be enough of them
    key = "tip.few_updates" if rows * outlook.n_steps >= least else "tip.few_updates_all"
    return say(key, steps=outlook.n_steps, least=least, rows=rows)


def _batch_over_data(config: Config, outlook: Outlook) -> str | None:
    if outlook.units is None or outlook.units_per_step is None or outlook.units_per_step <= outlook.units:
        return None
    return say("tip.batch_over_data", asked=outlook.units_per_step, units=outlook.units)


def _many_epochs(config: Config, outlook: Outlook) -> str | None:
    if outlook.n_steps is None or not outlook.steps_per_epoch or config.training.eval_strategy != "no":
        return None
    epochs = outlook.n_steps / outlook.steps_per_epoch
    return say("tip.many_epochs", epochs=epochs, most=EPOCHS) if epochs > EPOCHS else None


def _warm_up_share(config: Config, outlook: Outlook) -> str | None:
    training = config.training
    share = (
        training.warmup_steps
        if 0 < training.warmup_steps < 1
        else 0
        if training.warmup_steps
        else training.warmup_ratio
    )
    if share > WARM_UP:
        steps = math.ceil(share * outlook.n_steps) if outlook.n_steps else 0
        key = "training.warmup_steps" if training.warmup_steps else "training.warmup_ratio"
        return say("tip.warm_up_share", key=key, share=100 * share, value=share, steps=steps)
    if training.warmup_steps >= 1 and outlook.n_steps and training.warmup_steps > WARM_UP * outlook.n_steps:
        part = 100 * training.warmup_steps / outlook.n_steps
        return say("tip.warm_up_long", steps=int(training.warmup_steps), total=outlook.n_steps, share=part)
    return None


def _rate(config: Config, outlook: Outlook) -> str | None:
    training, in_full = config.training, bool(config.lora.modules_to_save) or config.model.resize_embeddings
    low, high = RATES[family(config), not in_full]
    if low <= training.learning_rate <= high or training.learning_rate == 0:
        return None
    key = "tip.rate_in_full" if in_full else "tip.rate"
    return say(key, rate=training.learning_rate, low=low, high=high, optim=training.optim)


def _dear_evaluation(config: Config, outlook: Outlook) -> str | None:
    known = (outlook.eval_tokens, outlook.n_evals, outlook.train_tokens, outlook.n_steps, outlook.steps_per_epoch)
    if None in known or not outlook.train_tokens or not outlook.steps_per_epoch:
        return None
    trained = outlook.train_tokens * (outlook.n_steps or 0) / outlook.steps_per_epoch
    share = FORWARD * (outlook.eval_tokens or 0) * (outlook.n_evals or 0) / max(trained, 1)
    return say("tip.dear_evaluation", n=outlook.n_evals, share=100 * share) if share > 1 else None


def _late_save(config: Config, outlook: Outlook) -> str | None:
    training = config.training
    if training.save_strategy != "steps" or training.save_steps < 1 or outlook.n_steps is None:
        return None
    if training.save_steps <= outlook.n_steps:
        return None
    return say("tip.late_save", every=training.save_steps, steps=outlook.n_steps)


def _no_choice(config: Config, outlook: Outlook) -> str | None:
    if not config.training.load_best_model_at_end or outlook.n_evals is None or outlook.n_evals > 1:
        return None
    return say("tip.no_choice", n=outlook.n_evals)


def _fp16(config: Config, outlook: Outlook) -> str | None:
    return say("tip.fp16") if config.training.fp16 and outlook.has_bf16 else None


TIPS: dict[str, Callable[[Config, Outlook], str | None]] = {
    "few_updates": _few_updates,
    "batch_over_data": _batch_over_data,
    "many_epochs": _many_epochs,
    "warm_up_share": _warm_up_share,
    "rate": _rate,
    "dear_evaluation": _dear_evaluation,
    "late_save": _late_save,
    "no_choice": _no_choice,
    "fp16": _fp16,
}
"""By name; `clipping` is first_steps.py's."""


def tips(config: Config, outlook: Outlook) -> Iterator[str]:
    """A sentence for each that fires."""
    for check in TIPS.values():
        if (sentence := check(config, outlook)) is not None:
            yield sentence
