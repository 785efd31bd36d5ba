"""What the `lora` and `quantization` sections put on a model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lora_train.trainer import patterns
from lora_train.trainer.config.settings import with_settings
from lora_train.trainer.errors import UserError
from lora_train.trainer.loop.checkpoint import load_checkpoint, save_checkpoint
from lora_train.trainer.loop.train import train_step
from lora_train.trainer.model.load import trainable
from lora_train.trainer.saved.state import Progress

from ..loop.test_train import make_components, make_config


def components_with(model, settings: dict[str, Any], **training: Any):
    return make_components(with_settings(make_config(model, **training), settings))


@pytest.mark.parametrize("fp16", [False, True], ids=["fp32", "fp16"])
def test_biases_are_trained_in_float32_on_the_slower_path(tiny_models, tmp_path, fp16):
    components = components_with(tiny_models["gpt_neox"], {"lora.bias": "lora_only"}, fp16=fp16)
    assert {reason for _, _, reason in components.patched.unfused} == {"patch.trained"}
    biases = {name: p for name, p in trainable(components.model).items() if name.endswith("bias")}
    assert len(biases) == 8
    assert {p.dtype for p in trainable(components.model).values()} == {torch.float32}
    before = {name: p.detach().clone() for name, p in biases.items()}
    train_step(components, components.plan.rows(1))
    train_step(components, components.plan.rows(2))
    assert all(not torch.equal(p, before[name]) for name, p in biases.items())


def test_modules_to_save_are_trained_saved_and_restored(tiny_models, tmp_path):
    settings = {"lora.modules_to_save": ["lm_head"], "lora.target_modules": ["q_proj", "v_proj"]}
    components = components_with(tiny_models["llama"], settings, fp16=True)
    heads = [name for name in trainable(components.model) if "lm_head" in name]
    assert len(heads) == 1
    before = trainable(components.model)[heads[0]].detach().clone()
    losses = [train_step(components, components.plan.rows(step))[0].item() for step in (1, 2)]
    assert losses[0] == losses[0]
    after = trainable(components.model)[heads[0]].detach().clone()
    assert not torch.equal(before, after)
    config = components.config.model_dump()
    folder = save_checkpoint(tmp_path, components, Progress(step=2), config, None)
    fresh = components_with(tiny_models["llama"], settings, fp16=True)
    load_checkpoint(folder, fresh)
    assert torch.equal(trainable(fresh.model)[heads[0]], after)
    assert train_step(fresh, fresh.plan.rows(3)).tolist() == train_step(components, components.plan.rows(3)).tolist()


def test_lora_on_the_embedding_is_trained_and_recorded_on_the_slower_path(tiny_models):
    components = components_with(tiny_models["llama"], {"lora.target_modules": ["q_proj", "embed_tokens"]})
    assert [name for name, _, _ in components.patched.unfused] == ["model.embed_tokens"]
    before = {name: parameter.detach().clone() for name, parameter in trainable(components.model).items()}
    for step in (1, 2):
        assert torch.isfinite(train_step(components, components.plan.rows(step))).all()
    moved = [
        name for name, parameter in trainable(components.model).items() if not torch.equal(parameter, before[name])
    ]
    assert any("embed_tokens.lora_embedding_B" in name for name in moved)
    assert any("q_proj.lora_B" in name for name in moved)


def test_rank_stabilized_scaling(tiny_models):
    components = components_with(tiny_models["llama"], {"lora.use_rslora": True, "lora.r": 16, "lora.lora_alpha": 8})
    layers: list[Any] = [module for group in components.patched.groups for module in group.modules]
    scalings = {layer.scaling["default"] for layer in layers}
    assert scalings == {8 / 16**0.5}


def test_a_regular_expression_and_what_matches_nothing(tiny_models):
    components = components_with(tiny_models["llama"], {"lora.target_modules": r".*layers\.0\.mlp\.(up|down)_proj"})
    names = [name for group in components.patched.groups for name in group.names]
    assert names == ["model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj"]
    with pytest.raises(UserError, match="nothing in the model is called") as error:
        components_with(tiny_models["llama"], {"lora.target_modules": ["query_key_value"]})
    assert "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj" in str(error.value)


def test_a_pattern_that_does_not_come_to_an_end_is_refused(tiny_models, monkeypatch):
    monkeypatch.setattr(patterns, "LIMIT", 1)
    with pytest.raises(UserError) as error:
        components_with(tiny_models["llama"], {"lora.target_modules": r"(\w+\.?)+!"})
    assert r"lora.target_modules: matching (\w+\.?)+! with the model's module names takes longer" in str(error.value)


def test_an_8_bit_base_trains_on_the_slower_path(tiny_models):
    components = components_with(tiny_models["llama"], {"quantization.load_in_8bit": True}, bf16=True)
    assert {reason for _, _, reason in components.patched.unfused} == {"patch.quantized"}
    losses = [train_step(components, components.plan.rows(step))[0].item() for step in (1, 2, 3)]
    plain = components_with(tiny_models["llama"], {}, bf16=True)
    expected = [train_step(plain, plain.plan.rows(step))[0].item() for step in (1, 2, 3)]
    assert losses == pytest.approx(expected, rel=0.02)
