"""Modules in float32 inside a 16-bit run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lora_train.instrument.judge.detect import LOST_SHARE, lost_share
from lora_train.trainer.errors import UserError
from lora_train.trainer.loop.train import train_step
from lora_train.trainer.model.float32 import in_float32, matching

from ..loop.test_train import make_components, make_config


def half_config(model: Path, modules: list[str]) -> Any:
    config = make_config(model, fp16=True, max_steps=3)
    return config.model_copy(update={"precision": config.precision.model_copy(update={"fp32_modules": modules})})


def test_output_and_residual_stay_float32_and_everything_is_given_back(tiny_models):
    components = make_components(half_config(tiny_models["gpt_neox"], []))
    base: Any = components.model.get_base_model()
    name = "gpt_neox.layers.0.mlp.dense_4h_to_h"
    dtypes: dict[str, torch.dtype] = {}
    for key, module in {"mlp": base.gpt_neox.layers[0].mlp, "layer": base.gpt_neox.layers[1]}.items():
        module.register_forward_hook(lambda _m, _a, out, key=key: dtypes.__setitem__(key, out.dtype))
    before = train_step(components, components.plan.rows(1)).tolist()
    assert dtypes == {"mlp": torch.float16, "layer": torch.float16}
    weight = base.gpt_neox.layers[0].mlp.dense_4h_to_h.base_layer.weight
    with in_float32(components.model, [name]):
        assert weight.dtype == torch.float32
        loss = train_step(components, components.plan.rows(2))[0].item()
        assert dtypes == {"mlp": torch.float32, "layer": torch.float32}
    assert weight.dtype == torch.float16
    assert {p.dtype for p in components.model.parameters() if not p.requires_grad} == {torch.float16}
    assert "forward" not in base.gpt_neox.layers[0].mlp.__dict__
    fresh = make_components(half_config(tiny_models["gpt_neox"], []))
    assert train_step(fresh, fresh.plan.rows(1)).tolist() == before
    assert train_step(fresh, fresh.plan.rows(2))[0].item() == pytest.approx(loss, rel=1e-3)


def test_sites_in_a_float32_layer_are_float32_and_lose_nothing(tiny_models):
    """Their zeros are not counted; taken for fp16 they looked like gradients that were all lost."""
    components = make_components(half_config(tiny_models["llama"], ["model.layers.1"]))
    assert components.recorder is not None
    sites = components.recorder.sites
    inside = {site.dtype for site in sites if site.module.startswith("model.layers.1")}
    assert inside == {"float32"}
    assert "float16" in {site.dtype for site in sites if site.module.startswith("model.layers.0")}
    with components.recorder.active():
        train_step(components, components.plan.rows(1))
        ((_, statistics, _),) = components.recorder.drain()
    assert 0 <= lost_share(sites, statistics.numpy()) < LOST_SHARE


def test_one_of_a_group_is_recorded_alone_and_computes_the_same(tiny_models):
    """q_proj in float32 reads another tensor than k_proj and v_proj, and keeps its statistics."""
    name = "model.layers.0.self_attn.q_proj"
    components = make_components(half_config(tiny_models["llama"], [name]))
    assert [group.names for group in components.patched.groups][:2] == [
        [name],
        ["model.layers.0.self_attn.k_proj", "model.layers.0.self_attn.v_proj"],
    ]
    assert components.recorder is not None
    with components.recorder.active():
        row = train_step(components, components.plan.rows(1))
        ((_, statistics, _),) = components.recorder.drain()
    named = {site.name: statistics[site.id] for site in components.recorder.sites}
    assert named[f"{name}:out"][0] > 0
    assert named["model.layers.0.self_attn.k_proj:out"][0] > 0
    plain = make_components(half_config(tiny_models["llama"], []))
    assert row[0].item() == pytest.approx(train_step(plain, plain.plan.rows(1))[0].item(), rel=1e-4)


def test_patterns_name_modules_and_a_typing_mistake_is_told(tiny_models):
    components = make_components(half_config(tiny_models["llama"], []))
    assert matching(components.model, ["model.layers.*.mlp"]) == ["model.layers.0.mlp", "model.layers.1.mlp"]
    with pytest.raises(UserError, match=r"model\.layers\.7\.mlp names no module"):
        matching(components.model, ["model.layers.7.mlp"])
