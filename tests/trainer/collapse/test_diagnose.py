"""Which micro-batch, module and rows are named for a step that is not finite."""

from __future__ import annotations

from typing import Any

import pytest
from lora_train.instrument.judge.detect import Kind, Trouble
from lora_train.trainer.collapse.diagnose import diagnose, first_bad_row

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


@pytest.mark.parametrize(
    ("kind", "place", "all_bad", "expected"),
    [
        (Kind.FORWARD_OVERFLOW, (1, 0), False, 8),
        (Kind.FORWARD_OVERFLOW, (0, 0), False, None),
        (Kind.FORWARD_OVERFLOW, (1, 0), True, 8),
        (Kind.BAD_WEIGHT, (1, 0), False, 8),
        (Kind.BAD_WEIGHT, (1, 0), True, None),
        (Kind.DEAD_ADAPTER, None, True, None),
        (Kind.NOT_REPRODUCED, None, False, 9),
    ],
)
def test_the_first_bad_row_is_of_the_micro_batch_to_blame(
    kind: Kind, place: tuple[int, int] | None, all_bad: bool, expected: int | None
):
    """Weights that spared no row are to blame, not the rows; of a step that is healthy again any place will do."""
    trouble = Trouble(4, bad_rows={(1, 0): [8, 3], (0, 1): [9]}, all_bad=all_bad)
    assert first_bad_row(trouble, kind, place) == expected


def test_a_diagnosis_says_where_no_row_is_bad(tiny_models):
    components = make_components(make_config(tiny_models["llama"]))
    healthy = diagnose(components, Trouble(1))
    trend = diagnose(components, Trouble(1, Kind.DIVERGENCE, evidence={"limit": 2.0}))
    assert (healthy.kind, healthy.evidence["first_bad_row"]) == (Kind.NOT_REPRODUCED, None)
    assert trend.evidence == {"limit": 2.0, "first_bad_row": None}
