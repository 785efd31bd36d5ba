"""Which micro-batch, module and rows are named for a step that is not finite."""

from __future__ import annotations

from typing import Any

from lora_train.instrument.judge.detect import Trouble
from lora_train.trainer.collapse.diagnose import diagnose

from ..loop.test_train import make_components, make_config


def test_an_infinite_lora_weight_that_softmax_hides_is_a_dead_adapter(tiny_models):
    """An infinite score is a zero probability: the loss is finite and the backward pass is not."""
    components = make_components(make_config(tiny_models["gpt_neox"], bf16=True))
    base: Any = components.model.get_base_model()
    layer = base.gpt_neox.layers[1].attention.query_key_value
    layer.lora_B["default"].weight.data[0, 0] = float("inf")
    diagnosis = diagnose(components, Trouble(1))
    module = "gpt_neox.layers.1.attention.query_key_value"
    assert (diagnosis.kind, diagnosis.module, diagnosis.phase) == ("dead_adapter", module, "optimizer")
    assert diagnosis.evidence["adapter_nonfinite"] == 1


def test_a_forward_pass_is_blamed_before_a_gradient_of_an_earlier_micro_batch(tiny_models):
    """While the loss scale still falls, gradients overflow in healthy micro-batches too."""
    config = make_config(tiny_models["llama"], fp16=True, gradient_accumulation_steps=2)
    components = make_components(config)
    first, second = components.plan.micro_batches(1)
    components.loss_scale.scale.fill_(2.0**40)
    assert diagnose(components, Trouble(1)).kind == "scale_collapse"
    seen = {int(token) for example in first for token in example.input_ids}
    token, row = next((t, e.row) for e in second for t in map(int, e.input_ids) if t not in seen)
    base: Any = components.model.get_base_model()
    base.model.embed_tokens.weight.data[token] = float("inf")
    diagnosis = diagnose(components, Trouble(1))
    assert (diagnosis.kind, diagnosis.module, diagnosis.phase) == ("bad_weight", "model.embed_tokens", "forward")
    assert diagnosis.evidence["micro_batch"] == 1
    assert row in diagnosis.evidence["rows_alone"]
    assert not {example.row for example in first} & set(diagnosis.evidence["rows_alone"])
