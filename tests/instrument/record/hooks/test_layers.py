"""Which modules and parameters are recorded besides LoRA layers, under which names."""

from __future__ import annotations

from typing import Any

import torch
from lora_train.instrument.record.hooks.layers import OF_ADAPTER, OF_LINEAR, other_layers
from lora_train.instrument.record.patch import Layer, on_hooks
from peft import LoHaConfig, LoraConfig, PromptTuningConfig, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D


class Small(nn.Module):
    """Runs backwards, so that calls and definitions stand in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.norm, self.first = nn.Linear(4, 2), nn.LayerNorm(4), Conv1D(4, 4)
        self.tied, below = nn.Linear(2, 2), nn.Linear(2, 2)
        self.head = nn.Sequential(nn.Linear(2, 2), below)
        self.tied.weight = below.weight

    def forward(self, x: torch.Tensor, **_: Any) -> torch.Tensor:
        return self.tied(self.head(self.last(self.norm(self.first(x)))))


def found(model: nn.Module) -> dict[str, Layer]:
    def once() -> None:
        model(torch.zeros(1, 4))

    layers = other_layers(model, on_hooks(model, once), once)
    return {layer.name: layer for layer in layers}


def test_all_weights_in_the_order_of_the_calls():
    layers = found(Small())
    assert list(layers) == ["first", "norm", "last", "head.0", "head.1", "tied"]
    assert {name: layer.tensors for name, layer in layers.items() if layer.tensors != OF_LINEAR} == {"norm": ()}
    assert list(layers["first"].parameters) == ["weight.grad", "bias.grad"]
    assert list(layers["head.1"].parameters) == ["bias.grad"]  # its weight is recorded where it is met first


def test_a_frozen_linear_has_gradients_only_behind_what_is_trained():
    model = Small().requires_grad_(False)
    model.norm.requires_grad_(True)
    tensors = {name: (layer.tensors, list(layer.parameters)) for name, layer in found(model).items()}
    assert tensors["first"] == (("out",), [])
    assert tensors["norm"] == ((), ["weight.grad", "bias.grad"])
    assert tensors["last"] == (OF_LINEAR, [])


def test_beside_lora_only_what_else_is_trained():
    config = LoraConfig(r=2, target_modules=["first", "last"], modules_to_save=["head"], lora_bias=True, use_dora=False)
    layers = found(get_peft_model(Small(), config))
    assert {name: (layer.tensors, sorted(layer.parameters)) for name, layer in layers.items()} == {
        "first": ((), ["lora_B.bias.grad"]),
        "last": ((), ["lora_B.bias.grad"]),
        "head.0": (OF_LINEAR, ["bias.grad", "weight.grad"]),
        "head.1": (OF_LINEAR, ["bias.grad", "weight.grad"]),
    }
    assert found(get_peft_model(Small(), LoraConfig(r=2, target_modules=["first", "last"]))) == {}


def test_a_layer_of_another_adapter_holds_all_that_is_trained_in_it():
    layers = found(get_peft_model(Small(), LoHaConfig(r=2, target_modules=["last"])))
    assert layers["last"].tensors == OF_ADAPTER
    assert sorted(layers["last"].parameters) == [f"hada_w{n}_{side}.grad" for n in "12" for side in "ab"]
    assert layers["head.0"].tensors == OF_LINEAR  # frozen, and a gradient comes through


def test_names_are_the_base_models_where_a_prompt_is_trained(tiny_models):
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny_models["llama"])
    model = get_peft_model(base, PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))
    ids = torch.arange(4)[None]
    layers = other_layers(model, on_hooks(model, lambda: None), lambda: model(input_ids=ids))
    names = [layer.name for layer in layers]
    assert "model.layers.0.self_attn.q_proj" in names
    (trained,) = [layer for layer in layers if layer.parameters]
    assert list(trained.parameters) == ["weight.grad"]
    assert trained.name.startswith("prompt_encoder.")


def test_without_a_first_pass_the_order_is_that_of_the_definition():
    model = Small()
    layers = other_layers(model, on_hooks(model, lambda: None), lambda: None)
    assert [layer.name for layer in layers] == ["last", "norm", "first", "tied", "head.0", "head.1"]
