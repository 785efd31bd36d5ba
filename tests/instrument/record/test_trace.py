"""The module to blame, in models with a fault planted at a known place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lora_train.instrument.record.trace import Tracer, traced_modules, watch_ops
from transformers import LlamaConfig, LlamaForCausalLM

from .test_patch import IDS, make, patched_copy


def traced(model: Any, patched: Any, scale: float = 1.0) -> Tracer:
    """A float16 forward and backward under autocast."""
    tracer = Tracer(model, patched.groups, torch.float16)
    with tracer.active():
        with torch.autocast("cpu", torch.float16):
            logits = model(input_ids=IDS).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), IDS.flatten())
        (loss * scale).backward()
    assert not any(module._forward_hooks for module in traced_modules(model).values())
    assert all(group.slot is None for group in patched.groups)
    return tracer


def half(family: str) -> tuple[Any, Any, Any]:
    model, patched = patched_copy(make(family))
    base: Any = model.get_base_model()
    for parameter in base.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.half()
    return model, patched, base


def test_a_healthy_model_has_no_origin():
    model, patched, _ = half("llama")
    tracer = traced(model, patched)
    assert tracer.origin("forward", None) is None
    assert tracer.origin("backward", None) is None
    assert all(trace.sides["out"].n > 0 for name, trace in tracer.traces.items() if "layers" in name)


@torch.no_grad()
def plant(base: Any, where: str) -> str:
    """Makes one place overflow in float16 and names the module."""
    layer = base.model.layers[1]
    if where == "mlp output":
        layer.mlp.down_proj.base_layer.weight[3] = 60000.0
        return "model.layers.1.mlp.down_proj"
    if where == "gate * up":
        for linear in (layer.mlp.gate_proj, layer.mlp.up_proj):
            linear.base_layer.weight.mul_(3000.0)
        return "model.layers.1.mlp"
    if where == "norm":
        layer.post_attention_layernorm.weight.fill_(60000.0)
        return "model.layers.1.post_attention_layernorm"
    if where == "embedding":
        base.model.embed_tokens.weight[int(IDS[0, 2]), 1] = float("inf")
        return "model.embed_tokens"
    assert where == "lora"
    layer.mlp.up_proj.lora_A["default"].weight[0, 0] = float("nan")
    return "model.layers.1.mlp.up_proj"


@pytest.mark.parametrize("where", ["mlp output", "gate * up", "norm", "embedding", "lora"])
def test_the_forward_origin_is_the_module_itself(where):
    model, patched, base = half("llama")
    name = plant(base, where)
    origin = traced(model, patched).origin("forward", None)
    assert origin is not None
    assert (origin.trace.name, origin.phase) == (name, "forward")
    assert origin.weights == {"embedding": "base", "lora": "lora"}.get(where)
    assert origin.trace.sides["in"].finite
    assert not origin.trace.sides["out"].finite


def test_attention_scores_are_named_by_operation():
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, vocab_size=128
    )
    config._attn_implementation = "eager"
    model: Any = LlamaForCausalLM(config).half()
    attention = model.model.layers[0].self_attn
    with torch.no_grad():
        attention.q_proj.weight.mul_(6e4)
        attention.k_proj.weight.mul_(6e4)
    with watch_ops(attention) as ops:
        model(input_ids=IDS % 128)
    assert ops.found is not None
    assert ops.found.name in ("aten.bmm.default", "aten.mul.Tensor", "aten.mul.Scalar")
    assert "forward" not in attention.__dict__


def test_the_backward_origin_is_where_finite_gradients_end():
    """A weight that the forward pass meets with tiny inputs only, and the backward pass with whole gradients."""
    model, patched, base = half("gpt_neox")
    layer = base.gpt_neox.layers[1]
    with torch.no_grad():
        layer.mlp.dense_h_to_4h.base_layer.weight[::2] = 3e4
        layer.mlp.dense_h_to_4h.base_layer.weight[1::2] = -3e4
        layer.post_attention_layernorm.weight.fill_(0.0)
        layer.post_attention_layernorm.bias.fill_(0.0)
        layer.post_attention_layernorm.bias[0] = 1e-4
    tracer = traced(model, patched, scale=2.0**12)
    assert tracer.origin("forward", None) is None
    origin = tracer.origin("backward", "lm_head")
    assert origin is not None
    assert (origin.trace.name, origin.phase) == ("gpt_neox.layers.1.mlp.dense_h_to_4h", "backward")
    assert origin.trace.sides["grad_out"].finite
    assert not origin.trace.sides["grad_in"].finite
