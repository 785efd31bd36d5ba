"""What a run is about to do, for the checks before it: lengths, evaluations, checkpoints, the device."""

from __future__ import annotations

import math

import torch

from ..checks.tips import Outlook
from ..config.schema import Config
from ..data.batches import Plan
from ..data.examples import Dataset
from ..loop.lr_schedule import warmup_steps
from ..loop.schedule import schedule_of


def outlook_of(config: Config, plan: Plan, eval_data: Dataset | None, device: torch.device) -> Outlook:
    """The outlook of a run whose rows have been read."""
    training = config.training
    n_steps = plan.n_steps(training.num_train_epochs, training.max_steps)
    schedule = schedule_of(training, n_steps, plan.steps_per_epoch)
    examples = plan.dataset.examples
    return Outlook(
        n_steps=n_steps,
        steps_per_epoch=plan.steps_per_epoch,
        units=len(plan.units(0)),
        units_per_step=plan.units_per_step,
        warm_up=warmup_steps(training, n_steps),
        train_tokens=sum(len(example.input_ids) for example in examples),
        eval_tokens=sum(len(example.input_ids) for example in eval_data.examples) if eval_data else None,
        n_evals=schedule.left(schedule.eval_every, 0) if eval_data and schedule.eval_every < math.inf else 0,
        save_every=schedule.save_every,
        has_bf16=device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False),
    )
