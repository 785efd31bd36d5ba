"""An evaluation and its rows: each is what the row alone has, in source order, and they add up to eval_loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lora_train.trainer.console import Console
from lora_train.trainer.data.examples import Dataset, load_examples
from lora_train.trainer.loop.components import Components, build
from lora_train.trainer.loop.engine import Engine
from lora_train.trainer.loop.evaluate import evaluate
from lora_train.trainer.model.load import load_tokenizer, pad_token_id, trainable

from .test_train import make_config

# float32 losses of some ten tokens, of a batch and of a row alone
TOLERANCE = 64 * 2.0**-24


@pytest.fixture(scope="module")
def components(tiny_models: dict[str, Path]) -> Components:
    """A tiny LLaMA whose adapter does something, with 31 rows to evaluate that are not in source order."""
    config = make_config(tiny_models["llama"], per_device_eval_batch_size=7)
    tokenizer = load_tokenizer(config)
    data = load_examples(config.data.train, config.data, tokenizer, 40)
    shuffled = [data.examples[i] for i in np.random.default_rng(0).permutation(len(data.examples))[:31]]
    made = build(
        config, Engine(), data, replace(data, examples=shuffled), pad_token_id(tokenizer), Console(silent=True)
    )
    for parameter in trainable(made.model).values():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def of(components: Components, rows: Sequence[int]) -> Dataset:
    assert components.eval_data is not None
    kept = [example for example in components.eval_data.examples if example.row in rows]
    return replace(components.eval_data, examples=kept)


@pytest.mark.parametrize("route", ["fused", "own head", "padded"])
def test_rows_are_those_alone_and_add_up(components: Components, route: str, monkeypatch: pytest.MonkeyPatch):
    if route == "padded":
        monkeypatch.setattr(components.loss, "_knows_rows", None)
    monkeypatch.setattr(components.loss, "own_head", route == "own head")
    evaluation, rows = evaluate(components)
    assert rows.row.tolist() == sorted(rows.row.tolist())
    assert len(set(rows.row.tolist())) == 31
    assert rows.loss_sum.sum() / rows.n_tokens.sum() == pytest.approx(evaluation.eval_loss, rel=TOLERANCE)
    for index in (0, 7, 30):
        alone, one = evaluate(replace(components, eval_data=of(components, [int(rows.row[index])])))
        assert rows.loss_sum[index] == pytest.approx(alone.eval_loss * rows.n_tokens[index], rel=TOLERANCE)
        assert (one.hash[0], one.n_tokens[0]) == (rows.hash[index], rows.n_tokens[index])


class OneOfTwo(Engine):
    """A process that hears nothing of the other."""

    def __init__(self, rank: int):
        super().__init__()
        self.rank, self.world_size = rank, 2

    def sum_(self, tensors: Sequence[torch.Tensor]) -> None:
        return None


def test_every_row_is_one_process_s_and_zero_in_the_others(components: Components):
    _, alone = evaluate(components)
    parts = [evaluate(replace(components, engine=OneOfTwo(rank)))[1].loss_sum for rank in (0, 1)]
    assert np.all((parts[0] == 0) != (parts[1] == 0))
    assert np.array_equal(parts[0] + parts[1], alone.loss_sum)


def test_one_bad_row_spoils_no_other(components: Components):
    assert components.eval_data is not None
    weight = components.model.get_input_embeddings().weight
    examples = sorted(components.eval_data.examples, key=lambda example: example.row)
    unused = min(set(range(len(weight))) - {int(token) for example in examples for token in example.input_ids})
    spoilt = examples[3].input_ids.copy()
    spoilt[0] = unused
    examples[3] = replace(examples[3], input_ids=spoilt)
    before = weight[unused].detach().clone()
    with torch.no_grad():
        weight[unused] = torch.nan
        evaluation, rows = evaluate(replace(components, eval_data=Dataset("x", examples)))
        weight[unused] = before
    assert np.isnan(evaluation.eval_loss)
    assert np.flatnonzero(np.isnan(rows.loss_sum)).tolist() == [3]


def test_row_hashes_tell_token_mask_and_order(components: Components):
    assert components.eval_data is not None
    data = of(components, [example.row for example in components.eval_data.examples])
    first = data.examples[0]
    other_mask = replace(first, supervised=np.roll(first.supervised, 1))
    changed = Dataset("x", [other_mask, *data.examples[1:]])
    assert int(np.sum(changed.row_hashes != data.row_hashes)) == 1
    moved = Dataset("x", [replace(first, row=10**6), *data.examples[1:]])
    assert set(moved.row_hashes.tolist()) == set(data.row_hashes.tolist())
