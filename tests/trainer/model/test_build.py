"""The model that is trained and its fake are the same sequence of steps."""

from __future__ import annotations

import torch
from lora_train.trainer.config.settings import with_settings
from lora_train.trainer.dry_run.fake_model import make_fake
from lora_train.trainer.model import build

from ..loop.test_train import make_components, make_config


def test_a_step_added_to_the_builder_is_in_the_model_and_in_its_fake(tiny_models, monkeypatch):
    calls: list[str] = []
    for name in ("take_fast_path", "add_lora", "matching", "patch", "widen", "SupervisedLoss"):
        real = getattr(build, name)

        def counted(*arguments, name=name, real=real, **named):
            calls.append(name)
            return real(*arguments, **named)

        monkeypatch.setattr(build, name, counted)
    config = with_settings(make_config(tiny_models["llama"], bf16=True), {"instrument.enabled": False})
    components = make_components(config)
    of_the_model, calls[:] = list(calls), []
    fake = make_fake(config, torch.device("cpu"))
    assert of_the_model == calls == ["take_fast_path", "add_lora", "matching", "patch", "widen", "SupervisedLoss"]
    own = {name: (parameter.shape, parameter.dtype) for name, parameter in components.model.named_parameters()}
    assert own == {name: (parameter.shape, parameter.dtype) for name, parameter in fake.model.named_parameters()}
    assert (fake.loss.fused, fake.loss.padding_free) == (components.loss.fused, components.loss.padding_free)
