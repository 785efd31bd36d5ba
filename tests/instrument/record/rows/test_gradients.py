"""What every training row adds to a step, against the step run with that row alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lora_train.instrument.record.rows.gradients import ALONG, KNOWN, LOSS, SUMSQ, RowValues
from lora_train.trainer.config.schema import Config
from lora_train.trainer.console import Console
from lora_train.trainer.data.examples import load_examples
from lora_train.trainer.loop.components import Components, build
from lora_train.trainer.loop.engine import Engine
from lora_train.trainer.loop.train import accumulate
from lora_train.trainer.model.load import load_tokenizer, pad_token_id, trainable

from ....conftest import DATA

ROUNDING = 2e-4
"""Of a square: a row alone and among others goes through the model's fp32 products with sums in another order."""


def make(model: Path, **sections: Any) -> Components:
    config = Config.model_validate(
        {
            "model": {"name_or_path": str(model)},
            "lora": {"r": 4, "lora_alpha": 8},
            "data": {"train": str(DATA), "format": "koalpaca", "limit": 40, "cutoff_len": 60}
            | sections.get("data", {}),
            "training": {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "max_steps": 8}
            | sections.get("training", {}),
            "instrument": {"rows_every": 1, "probe_every": 0, "histogram_every": 0, **sections.get("instrument", {})},
            **{name: value for name, value in sections.items() if name not in ("data", "training", "instrument")},
        }
    )  # fmt: skip
    tokenizer = load_tokenizer(config)
    data = load_examples(config.data.train, config.data, tokenizer, config.data.limit)
    components = build(config, Engine(), data, None, pad_token_id(tokenizer), Console(silent=True))
    components.model.train()
    generator = torch.Generator().manual_seed(0)
    for parameter in trainable(components.model).values():  # B is 0 at the start, and dA with it
        parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return components


def recorded(components: Components, step: int = 1) -> tuple[RowValues, list[torch.Tensor]]:
    """A step's rows, and its gradients."""
    recorder, optimizer = components.recorder, components.optimizer
    assert recorder is not None
    assert recorder.rows is not None
    with recorder.active():
        accumulate(components, components.plan.rows(step))
        gradients = [gradient.clone() for gradient in optimizer.gradients]
        recorder.finish_step(optimizer.gradient_rows(), optimizer.gradients)
    optimizer.clear()
    (values,) = recorder.rows.drain()
    return values, gradients


def alone(components: Components, step: int) -> list[list[tuple[float, float]]]:
    """L_r and |g_r|^2 of each row of each micro-batch, each run by itself; dropout is off."""
    rows, found = components.plan.rows(step), []
    for micro, own in enumerate(rows.own(0)):
        found.append([])
        for example in own:
            loss = accumulate(components, rows.alone(0, micro, [example]))[0] * rows.weight
            square = sum(float(g.double().square().sum()) for g in components.optimizer.gradients)
            components.optimizer.clear()
            found[-1].append((float(loss), square))
    return found


CASES = {
    "padding-free": {},
    "padded": {"data": {"padding_free": False}},
    "packed": {"data": {"packing": True, "cutoff_len": 120}},
    "checkpointing": {"training": {"gradient_checkpointing": True}},
    "one row": {"training": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1}},
}


@pytest.mark.parametrize("case", CASES)
def test_a_row_among_others_is_what_it_is_alone(tiny_models: dict[str, Path], case: str):
    components = make(tiny_models["llama"], **CASES[case])
    values, gradients = recorded(components)
    expected = alone(components, 1)
    for micro, rows in enumerate(expected):
        for at, (loss, square) in enumerate(rows):
            found = values.values[0, micro, at]
            assert found[KNOWN] == 1
            assert float(found[LOSS]) == pytest.approx(loss, rel=1e-5)
            assert float(found[SUMSQ]) == pytest.approx(square, rel=ROUNDING)
            assert values.modules is not None
            assert float(values.modules[0, micro, at].sum()) == pytest.approx(float(found[SUMSQ]), rel=1e-12)
        assert (values.values[0, micro, len(rows) :] == 0).all()
    assert any(float(g.abs().sum()) for g in gradients)


@pytest.mark.parametrize("case", CASES)
def test_inner_products_are_those_with_the_whole_micro_batch(tiny_models: dict[str, Path], case: str):
    components = make(tiny_models["llama"], **CASES[case])
    values, _ = recorded(components)
    rows = components.plan.rows(1)
    for micro, own in enumerate(rows.own(0)):
        each = []
        for example in own:
            accumulate(components, rows.alone(0, micro, [example]))
            each.append(torch.cat([g.double().flatten() for g in components.optimizer.gradients]))
            components.optimizer.clear()
        gradients = torch.stack(each)
        expected, terms = gradients @ gradients.sum(0), gradients.abs() @ gradients.abs().sum(0)
        assert ((values.values[0, micro, : len(own), ALONG] - expected).abs() <= ROUNDING * terms).all()


def test_inner_products_are_taken_on_the_steps_that_keep_every_module(tiny_models: dict[str, Path]):
    found, squares = [], []
    for every in (1, 2, 0):
        values, _ = recorded(make(tiny_models["llama"], instrument={"rows_every": every}))
        found.append(bool((values.values[..., ALONG] != 0).any()))
        squares.append(values.values[..., SUMSQ])
    assert found == [True, False, False]
    assert torch.equal(squares[0], squares[1])
    assert torch.equal(squares[0], squares[2])


def test_recording_rows_changes_no_bit(tiny_models: dict[str, Path]):
    """Sums are cut at the rows whether they are recorded, or nothing is."""
    _, with_rows = recorded(make(tiny_models["llama"]))
    for settings in ({"rows": False}, {"enabled": False}):
        components = make(tiny_models["llama"], instrument=settings)
        accumulate(components, components.plan.rows(1))
        assert all(torch.equal(a, b) for a, b in zip(with_rows, components.optimizer.gradients, strict=True))


def test_the_loss_scale_is_taken_out(tiny_models: dict[str, Path]):
    components = make(tiny_models["llama"])
    plain, _ = recorded(components)
    recorder, optimizer = components.recorder, components.optimizer
    assert recorder is not None
    assert recorder.rows is not None
    components.loss_scale.scale.fill_(1024.0)
    with recorder.active():
        accumulate(components, components.plan.rows(1))
        recorder.finish_step(optimizer.gradient_rows(), optimizer.gradients, scale=components.loss_scale.scale)
    (scaled,) = recorder.rows.drain()
    torch.testing.assert_close(scaled.values, plain.values, rtol=1e-5, atol=0.0)
    torch.testing.assert_close(scaled.modules, plain.modules, rtol=1e-4, atol=0.0)


def test_modules_are_kept_every_so_many_steps_or_always(tiny_models: dict[str, Path]):
    rows_every = make(tiny_models["llama"], instrument={"rows_every": 2})
    assert recorded(rows_every, 1)[0].modules is None
    assert recorded(rows_every, 2)[0].every
    named = make(tiny_models["llama"], instrument={"rows_every": 0, "row_modules": ["*.0.*q_proj"]})
    values, _ = recorded(named, 1)
    assert values.modules is not None
    assert not values.every
    assert named.recorder is not None
    assert named.recorder.rows is not None
    kept = [name for name, kept in zip(named.recorder.rows.modules, named.recorder.rows.always, strict=True) if kept]
    assert kept
    assert all(".0." in name and name.endswith("q_proj") for name in kept)


def test_a_row_that_is_not_finite_stands_alone(tiny_models: dict[str, Path]):
    """An embedding that only one row has."""
    components = make(tiny_models["llama"])
    rows = components.plan.rows(1)
    tokens = [set(example.input_ids.tolist()) for example in rows.examples]
    own = tokens[1].difference(*tokens[:1], *tokens[2:])
    assert own
    table: Any = components.model.get_input_embeddings()
    with torch.no_grad():
        table.weight[own.pop()] = torch.inf
    values, _ = recorded(components)
    flat = values.values[0].reshape(-1, 4)[[0, 1, 2, 3, 4, 5]]
    assert flat[:, SUMSQ].isfinite().tolist() == [True, False, True, True, True, True]
    assert flat[:, LOSS].isfinite().tolist() == [True, False, True, True, True, True]


def test_a_pass_that_tells_no_rows_apart_makes_them_unknown(tiny_models: dict[str, Path]):
    """Modules of a group that are called one by one."""
    components = make(tiny_models["llama"], instrument={"rows_every": 0})
    group = next(group for group in components.patched.groups if len(group.modules) > 1)
    layer: Any = group.modules[-1]
    layer.lora_dropout["default"] = torch.nn.Dropout(0.5)  # another mask than the others': no call serves them all
    values, _ = recorded(components)
    assert (values.values[0, :, :3, KNOWN] == 0).all()
    assert (values.values[0, :, :3, LOSS] > 0).all()
