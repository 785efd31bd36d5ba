"""Remedies on snapshots steps: what they change, and that everything is as before afterwards."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from lora_train.instrument.judge.detect import Diagnosis, Kind
from lora_train.instrument.record.loss_scale import LossScale
from lora_train.trainer.collapse.rehearse import HEADROOM, changed, rehearse
from lora_train.trainer.collapse.remedy import (
    Remedy,
    candidates,
    recommended_scale,
    start_scale,
    try_out,
)
from lora_train.trainer.config.settings import as_overrides, with_settings
from lora_train.trainer.loop.snapshots import Snapshots
from lora_train.trainer.loop.train import train_step
from lora_train.trainer.model.load import trainable
from lora_train.trainer.saved.state import Progress

from ..loop.test_train import make_components, make_config


def found(kind: str, module: str | None = None, **evidence: object) -> Diagnosis:
    return Diagnosis(Kind(kind), 2, module, "forward", [1, 2, 3], dict(evidence))


def test_the_recommended_scale_is_the_highest_with_headroom(tiny_models):
    components = make_components(make_config(tiny_models["llama"], fp16=True))
    scale = recommended_scale(components, 1)
    assert scale is not None
    assert torch.tensor(scale).log2() % 1 == 0

    def finite_at(value: float) -> bool:
        loss_scale = LossScale("cpu", initial=value, dynamic=False)
        return rehearse(replace(components, loss_scale=loss_scale), 1).finite

    assert finite_at(scale)
    assert not finite_at(scale * HEADROOM * 2)
    auto = with_settings(components.config, {"precision.loss_scale": "auto"})
    start_scale(replace(components, config=auto))
    assert components.loss_scale.scale.item() == scale
    assert components.loss_scale.dynamic


def test_a_trial_applies_nothing_and_is_undone(tiny_models):
    components = make_components(make_config(tiny_models["gpt_neox"], fp16=True))
    train_step(components, components.plan.rows(1))
    before = {name: parameter.detach().clone() for name, parameter in trainable(components.model).items()}
    alone = rehearse(components, 2)
    snapshots = Snapshots(components)
    module = "gpt_neox.layers.1.mlp.dense_4h_to_h"
    for settings in ({"precision.fp32_modules": [module]}, {"precision.loss_scale": 16.0}, {"data.skip_rows": [10**6]}):
        trial = try_out(components, found("forward_overflow"), Remedy("skip_rows", settings), None, snapshots)
        assert trial.verified
        assert abs(trial.outcome.loss - alone.loss) < 1e-3
    assert rehearse(components, 2) == alone
    assert all(torch.equal(parameter, before[name]) for name, parameter in trainable(components.model).items())


def test_a_step_whose_rows_are_all_left_out_is_empty(tiny_models):
    components = make_components(make_config(tiny_models["llama"]))
    rows = [example.row for micro in components.plan.micro_batches(2) for example in micro]
    with changed(components, {"data.skip_rows": rows}) as other:
        assert other.plan.micro_batches(2) == [[]]
        assert other.plan.micro_batches(3) == components.plan.micro_batches(3)
        loss, _, _, skipped, _, updates, latched = train_step(other, other.plan.rows(2)).tolist()
    assert loss != loss
    assert (skipped, updates, latched) == (1.0, 0.0, 0.0)


def test_candidates_come_in_the_order_of_their_cost(tiny_models):
    components = make_components(make_config(tiny_models["gpt_neox"], fp16=True))
    module = "gpt_neox.layers.1.mlp.dense_4h_to_h"
    kinds = [remedy.kind for remedy in candidates(components, found("forward_overflow", module, rows_alone=[2]), None)]
    assert kinds == ["loss_scale", "fp32_module", "fp32_module", "fp32_module", "skip_rows"]
    changes = [
        as_overrides(r.settings) for r in candidates(components, found("bad_weight", module, rows_alone=[2]), None)
    ]
    assert changes == [["data.skip_rows=[2]"]]
    snapshots = Snapshots(components)
    snapshots.keep(Progress(step=0))
    (back,) = candidates(components, found("dead_adapter"), snapshots.newest(before=2))
    assert (back.kind, back.rolls_back, back.settings) == ("rollback", True, {})
    slower = candidates(components, found("divergence"), snapshots.newest(before=2))
    rates = [remedy.settings["training.learning_rate"] for remedy in slower]
    assert rates == pytest.approx([1e-4, 1e-5])
    assert list(candidates(components, found("divergence"), None)) == []
    assert list(candidates(components, found("not_reproduced"), None)) == []


def test_an_overflow_in_the_last_norm_is_healed_with_the_head_that_reads_it(tiny_models):
    """Alone in float32 the norm does not help: under autocast the output layer rounds what it reads to fp16."""
    components = make_components(make_config(tiny_models["llama"], fp16=True))
    base: Any = components.model.get_base_model()
    base.model.norm.weight.data.fill_(50000.0)
    components.loss_scale.scale.fill_(2.0**-10)  # the gradient is as much larger
    assert not rehearse(components, 2).finite
    snapshots = Snapshots(components)
    remedies = candidates(components, found("forward_overflow", "model.norm", rows_alone=[2]), None)
    wide = [remedy for remedy in remedies if remedy.kind == "fp32_module"]
    assert [remedy.settings["precision.fp32_modules"] for remedy in wide] == [["model.norm"], ["model.norm", "lm_head"]]
    assert [try_out(components, found("forward_overflow"), remedy, None, snapshots).verified for remedy in wide] == [
        False,
        True,
    ]
    assert base.lm_head.weight.dtype == torch.float16
    assert not rehearse(components, 2).finite


def test_a_snapshot_that_is_not_finite_is_passed_over(tiny_models):
    components = make_components(make_config(tiny_models["llama"]))
    snapshots = Snapshots(components)
    snapshots.keep(Progress(step=0))
    weight = next(iter(trainable(components.model).values()))
    good = weight.detach().clone()
    with torch.no_grad():
        weight[0, 0] = float("nan")
    snapshots.keep(Progress(step=100))
    snapshot = snapshots.newest(before=150)
    assert snapshot is not None
    assert snapshot.progress.step == 0
    assert snapshots.newest(before=0) is None
    snapshots.restore(snapshot)
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
