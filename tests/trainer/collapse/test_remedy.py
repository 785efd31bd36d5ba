"""Remedies on healthy steps: what they change, and that everything is as before afterwards."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from lora_train.instrument.judge.detect import Diagnosis
from lora_train.instrument.record.loss_scale import LossScale
from lora_train.trainer.collapse.remedy import (
    HEADROOM,
    Remedy,
    attempt,
    candidates,
    changed,
    recommended_scale,
    start_scale,
    try_out,
)
from lora_train.trainer.config.settings import as_overrides, with_settings
from lora_train.trainer.loop.checkpoint import Progress
from lora_train.trainer.loop.snapshots import Healthy
from lora_train.trainer.loop.train import train_step
from lora_train.trainer.model.load import trainable

from ..loop.test_train import make_config, make_parts


def found(kind: str, module: str | None = None, **evidence: object) -> Diagnosis:
    return Diagnosis(kind, 2, module, "forward", [1, 2, 3], dict(evidence))


def test_the_recommended_scale_is_the_highest_with_headroom(tiny_models):
    parts = make_parts(make_config(tiny_models["llama"], fp16=True))
    scale = recommended_scale(parts, 1)
    assert scale is not None
    assert torch.tensor(scale).log2() % 1 == 0

    def finite_at(value: float) -> bool:
        loss_scale = LossScale("cpu", initial=value, dynamic=False)
        return attempt(replace(parts, loss_scale=loss_scale, recorder=None), 1).finite

    assert finite_at(scale)
    assert not finite_at(scale * HEADROOM * 2)
    auto = with_settings(parts.config, {"precision.loss_scale": "auto"})
    start_scale(replace(parts, config=auto))
    assert parts.loss_scale.scale.item() == scale
    assert parts.loss_scale.dynamic


def test_a_trial_applies_nothing_and_is_undone(tiny_models):
    parts = make_parts(make_config(tiny_models["gpt_neox"], fp16=True))
    train_step(parts, 1)
    before = {name: parameter.detach().clone() for name, parameter in trainable(parts.model).items()}
    alone = attempt(replace(parts, recorder=None), 2)
    healthy = Healthy(parts.model, parts.optimizer, parts.loss_scale)
    quiet = replace(parts, recorder=None)
    module = "gpt_neox.layers.1.mlp.dense_4h_to_h"
    for settings in ({"precision.fp32_modules": [module]}, {"precision.loss_scale": 16.0}, {"data.skip_rows": [10**6]}):
        trial = try_out(quiet, found("forward_overflow"), Remedy("skip_rows", settings), None, healthy)
        assert trial.verified
        assert abs(trial.outcome.loss - alone.loss) < 1e-3
    assert attempt(quiet, 2) == alone
    assert all(torch.equal(parameter, before[name]) for name, parameter in trainable(parts.model).items())


def test_a_step_whose_rows_are_all_left_out_is_empty(tiny_models):
    parts = make_parts(make_config(tiny_models["llama"]))
    rows = [example.row for micro in parts.plan.step(2) for example in micro]
    with changed(replace(parts, recorder=None), {"data.skip_rows": rows}) as other:
        assert other.plan.step(2) == [[]]
        assert other.plan.step(3) == parts.plan.step(3)
        loss, _, _, skipped, _, updates, latched = train_step(other, 2).tolist()
    assert loss != loss
    assert (skipped, updates, latched) == (1.0, 0.0, 0.0)


def test_candidates_come_in_the_order_of_their_cost(tiny_models):
    parts = make_parts(make_config(tiny_models["gpt_neox"], fp16=True))
    module = "gpt_neox.layers.1.mlp.dense_4h_to_h"
    kinds = [remedy.kind for remedy in candidates(parts, found("forward_overflow", module, rows_alone=[2]), None)]
    assert kinds == ["loss_scale", "fp32_module", "fp32_module", "fp32_module", "skip_rows"]
    changes = [as_overrides(r.settings) for r in candidates(parts, found("bad_weight", module, rows_alone=[2]), None)]
    assert changes == [["data.skip_rows=[2]"]]
    healthy = Healthy(parts.model, parts.optimizer, parts.loss_scale)
    healthy.keep(Progress(step=0))
    (back,) = candidates(parts, found("dead_adapter"), healthy.newest(before=2))
    assert (back.kind, back.rolls_back, back.settings) == ("rollback", True, {})
    slower = candidates(parts, found("divergence"), healthy.newest(before=2))
    rates = [remedy.settings["training.learning_rate"] for remedy in slower]
    assert rates == pytest.approx([1e-4, 1e-5])
    assert list(candidates(parts, found("divergence"), None)) == []
    assert list(candidates(parts, found("not_reproduced"), None)) == []


def test_an_overflow_in_the_last_norm_is_healed_with_the_head_that_reads_it(tiny_models):
    """Alone in float32 the norm does not help: under autocast the output layer rounds what it reads to fp16."""
    parts = make_parts(make_config(tiny_models["llama"], fp16=True))
    base: Any = parts.model.get_base_model()
    base.model.norm.weight.data.fill_(50000.0)
    parts.loss_scale.scale.fill_(2.0**-10)  # the gradient is as much larger
    assert not attempt(replace(parts, recorder=None), 2).finite
    healthy = Healthy(parts.model, parts.optimizer, parts.loss_scale)
    remedies = candidates(parts, found("forward_overflow", "model.norm", rows_alone=[2]), None)
    wide = [remedy for remedy in remedies if remedy.kind == "fp32_module"]
    assert [remedy.settings["precision.fp32_modules"] for remedy in wide] == [["model.norm"], ["model.norm", "lm_head"]]
    assert [try_out(parts, found("forward_overflow"), remedy, None, healthy).verified for remedy in wide] == [
        False,
        True,
    ]
    assert base.lm_head.weight.dtype == torch.float16
    assert not attempt(replace(parts, recorder=None), 2).finite


def test_a_copy_that_is_not_finite_is_passed_over(tiny_models):
    parts = make_parts(make_config(tiny_models["llama"]))
    healthy = Healthy(parts.model, parts.optimizer, parts.loss_scale)
    healthy.keep(Progress(step=0))
    weight = next(iter(trainable(parts.model).values()))
    good = weight.detach().clone()
    with torch.no_grad():
        weight[0, 0] = float("nan")
    healthy.keep(Progress(step=100))
    copy = healthy.newest(before=150)
    assert copy is not None
    assert copy.progress.step == 0
    assert healthy.newest(before=0) is None
    healthy.restore(copy)
    assert torch.equal(weight, good)


def test_settings_extend_lists_and_replace_the_rest(tiny_models):
    config = make_config(tiny_models["llama"])
    config = with_settings(config, {"data.skip_rows": [1, 2], "precision.min_loss_scale": 4.0})
    config = with_settings(config, {"data.skip_rows": [2, 3], "precision.fp32_modules": ["a.b"]})
    assert config.data.skip_rows == [1, 2, 3]
    assert config.precision.min_loss_scale == 4.0
    settings = {"data.skip_rows": [1, 2], "precision.loss_scale": 1024.0, "training.learning_rate": 1e-5}
    assert as_overrides(settings) == [
        "data.skip_rows=[1,2]",
        "precision.loss_scale=1024",
        "training.learning_rate=1e-05",
    ]
