"""What a step of somebody's loop was, as plain numbers."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest
import torch
from lora_train.instrument import Instrument

from .test_callback import lora, rows


def test_a_step_ends_with_its_result(tiny_models, tmp_path):
    model = lora(tiny_models["llama"])
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    batch = {name: torch.tensor([row[name] for row in rows(4)]) for name in ("input_ids", "labels")}
    losses = []
    with Instrument(model, tmp_path / "run", gradient_accumulation_steps=2) as instrument:
        step = instrument.begin_step(learning_rate=1e-3, loss_scale=4.0)
        for _ in range(2):
            step.begin_micro_batch()
            loss = model(**batch).loss
            step.micro_batch(loss, batch)
            (loss / 2 * 4.0).backward()
            losses.append(float(loss))
        result = step.result(step.gradient_rows())
    # sums of float64 of float32 numbers, divided by powers of two
    assert result.loss == pytest.approx(sum(losses) / 2, rel=2**-23)
    norm = torch.cat([parameter.grad.flatten().double() for parameter in parameters]).norm() / 4  # pyright: ignore
    assert result.grad_norm == pytest.approx(float(norm), rel=1e-6)
    assert (result.number, result.finite, result.n_bad) == (1, True, 0)
    assert (result.tokens, result.supervised_tokens, result.longest) == (96, 88, 12)
    assert [micro.passes for micro in result.micro_batches] == [(batch,), (batch,)]
    assert (step.loss, step.finite) == (result.loss, True)
    assert result.seconds > 0
    with pytest.raises(FrozenInstanceError):
        result.loss = 0.0  # pyright: ignore[reportAttributeAccessIssue]


def test_a_loss_that_is_not_finite_is_counted_and_no_mean(tiny_models, tmp_path):
    model = lora(tiny_models["llama"])
    batch = {name: torch.tensor([row[name] for row in rows(4)]) for name in ("input_ids", "labels")}
    with Instrument(model, tmp_path / "run", gradient_accumulation_steps=2) as instrument:
        step = instrument.begin_step()
        for factor in (1.0, float("nan")):
            step.begin_micro_batch()
            loss = model(**batch).loss * factor
            step.micro_batch(loss, batch)
            loss.backward()
        result = step.result(step.gradient_rows())
    assert result.loss != result.loss
    assert (result.n_bad, result.finite, step.finite) == (1, False, False)
    assert [bool(micro.bad) for micro in result.micro_batches] == [False, True]
