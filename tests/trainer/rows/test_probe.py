"""A row under another row's question, and what the model says of both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from lora_train.trainer.config.schema import Config
from lora_train.trainer.data.examples import Example
from lora_train.trainer.model.load import load_tokenizer
from lora_train.trainer.rows.probe import probe, saved, under_another_question
from transformers import AutoModelForCausalLM

from .test_texts import example


def test_a_row_gets_the_question_of_another_that_asks_something_else():
    rows = [example(4, [5, 6, 7, 8, 9], 3), example(5, [5, 6, 7, 3], 3), example(6, [5, 4, 2, 2, 2], 2)]
    found = under_another_question([*rows, example(7, [8, 9])])
    texts = [[5, 4, 8, 9], [5, 4, 3], [6, 7, 2, 2, 2], None]
    assert [one.input_ids.tolist() if one else None for one in found] == texts, "none is longer than the longest was"
    assert [int(one.supervised.argmax()) for one in found if one] == [2, 2, 2]
    assert under_another_question(rows[:2]) == [None, None], "there is but one question"


def test_another_part_of_a_row_is_not_another_row():
    parts = [example(0, [1, 2, 3], 2), example(0, [4, 5, 6], 2)]
    assert under_another_question(parts) == [None, None]
    found = under_another_question([*parts, example(1, [7, 8, 9], 2)])
    assert [one.input_ids.tolist() if one else None for one in found][:2] == [[7, 8, 3], [7, 8, 6]]


def test_what_is_not_trained_on_between_answers_stays():
    dialogue = Example(0, np.array([1, 2, 3, 4, 5], np.int32), np.array([False, False, True, False, True]))
    found = under_another_question([dialogue, example(1, [7, 8, 9], 2)])[0]
    assert found is not None
    assert found.input_ids.tolist() == [7, 8, 3, 4, 5]
    assert found.supervised.tolist() == [False, False, True, False, True]


def test_what_is_saved_is_of_the_tokens_that_are_helped_most():
    own, other = np.array([1.0, 2, 3, 4, 5, 6, 7]), np.array([2.0, 0, 5, 4.5, 9, 6.25, 8])
    assert saved(own, other) == 4 + 2 + 1 + 1 + 0.5
    assert saved(own[:2], other[:2]) == -1.0


def test_what_is_saved_is_that_of_the_base_models_losses(tiny_models: dict[str, Path]):
    """Of plain transformers, one row at a time."""
    config = Config.model_validate({"model": {"name_or_path": str(tiny_models["llama"])}, "data": {"train": "t"}})
    tokenizer = load_tokenizer(config)
    rows = [example(3, [5, 6, 7, 8, 9, 11], supervised_from=3), example(8, [5, 6]), example(9, [4, 3, 9], 2)]
    done: list[int] = []
    found = probe(config, tokenizer, rows, done.append)
    assert done == [1, 2, 3]
    assert set(found) == {3, 9}, "a row without a question has none to lose"
    model = AutoModelForCausalLM.from_pretrained(tiny_models["llama"]).eval()

    def losses(ids: list[int], first: int) -> np.ndarray:
        with torch.no_grad():
            log_p = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        return -np.array([float(log_p[at - 1, ids[at]]) for at in range(first, len(ids))])

    whole = losses([4, 3, 8, 9, 11], 2) - losses([5, 6, 7, 8, 9, 11], 3)
    assert found[3] == pytest.approx(whole.sum(), abs=1e-4)
    assert found[9] == pytest.approx((losses([5, 6, 7, 9], 3) - losses([4, 3, 9], 2)).sum(), abs=1e-4)
