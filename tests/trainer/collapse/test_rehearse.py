"""A step that is run and thrown away: the loss is the step's own, and nothing is left of it."""

from __future__ import annotations

import math

import pytest
import torch
from lora_train.trainer.collapse.rehearse import rehearse
from lora_train.trainer.loop.train import train_step
from lora_train.trainer.model.load import trainable

from ..loop.test_train import make_components, make_config


@pytest.fixture(scope="module")
def components(tiny_models):
    return make_components(make_config(tiny_models["llama"], fp16=True, gradient_accumulation_steps=2))


def state(components) -> list[torch.Tensor]:
    tensors = [*trainable(components.model).values(), *components.optimizer.gradients, components.loss_scale.scale]
    return [tensor.detach().clone() for tensor in tensors]


def test_it_gives_what_the_step_gives_and_leaves_everything_as_it_was(components):
    before = state(components)
    outcome = rehearse(components, 1)
    recorded = rehearse(components, 1, record=True)
    traced = rehearse(components, 1, trace=True)
    assert all(torch.equal(a, b) for a, b in zip(before, state(components), strict=True))
    assert outcome.finite
    assert (outcome.statistics, outcome.tracer) == (None, None)
    assert recorded.loss == outcome.loss
    assert recorded.statistics is not None
    assert components.recorder is not None
    assert recorded.statistics.shape == (len(components.recorder.sites), 12)
    assert bool(recorded.statistics[:, 0].gt(0).any())
    assert traced.tracer is not None
    assert traced.tracer.traces["model.norm"].sides["out"].absmax > 0
    assert float(train_step(components, components.plan.rows(1))[0]) == outcome.loss


def test_one_micro_batch_alone_weighs_what_it_weighs_in_the_step(components):
    rows = components.plan.rows(2)
    halves = [rehearse(components, 2, rows=rows.alone(0, i, own)).loss for i, own in enumerate(rows.own(0))]
    # two float32 sums of the same two numbers
    assert sum(halves) == pytest.approx(rehearse(components, 2).loss, rel=2**-23)
    assert 0 < halves[0] < sum(halves)


def test_a_step_without_rows_is_finite_and_has_no_loss(components):
    numbers = list(components.plan.rows(3).numbers)
    outcome = rehearse(components, 3, {"data.skip_rows": numbers})
    assert math.isnan(outcome.loss)
    assert outcome.finite


def test_a_setting_holds_for_that_one_time(components):
    components.loss_scale.scale.fill_(2.0**40)
    try:
        assert not rehearse(components, 2).finite
        assert rehearse(components, 2, {"precision.loss_scale": 16.0}).finite
        assert components.loss_scale.scale.item() == 2.0**40
        assert (
            rehearse(components, 2, {"precision.fp32_modules": ["model.layers.1.mlp"]}, record=True).statistics is None
        )
    finally:
        components.loss_scale.scale.fill_(2.0**10)
