"""What the model says of a row under its own question, under others' and under the one that fits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from lora_train.trainer.config.schema import Config
from lora_train.trainer.model.load import load_tokenizer
from lora_train.trainer.rows.probe import most_of, probe
from transformers import AutoModelForCausalLM

from .test_texts import example


def test_what_counts_is_the_tokens_that_are_helped_most():
    own, other = np.array([1.0, 2, 3, 4, 5, 6, 7]), np.array([2.0, 0, 5, 4.5, 9, 6.25, 8])
    assert most_of(other - own) == 4 + 2 + 1 + 1 + 0.5
    assert most_of((other - own)[:2]) == -1.0


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

    own, other = losses([5, 6, 7, 8, 9, 11], 3), losses([4, 3, 8, 9, 11], 2)
    assert found[3].saved == pytest.approx((other - own).sum(), abs=1e-4)
    assert found[9].saved == pytest.approx((losses([5, 6, 7, 9], 3) - losses([4, 3, 9], 2)).sum(), abs=1e-4)
    assert [(one.better, one.fits) for one in found.values()] == [(0.0, None)] * 2, "no letters in common"


def test_an_answer_under_another_rows_question_is_told_whose_it_is(tiny_models: dict[str, Path]):
    """better is what the fitting question saves beyond its own, token by token where it does."""
    config = Config.model_validate({"model": {"name_or_path": str(tiny_models["llama"])}, "data": {"train": "t"}})
    tokenizer = load_tokenizer(config)
    texts = [("the yellow lemon grows", "a red house"), ("who built the red house", "it is a yellow lemon"),
             ("seven green birds", "they sing")]  # fmt: skip
    rows = []
    for at, (question, answer) in enumerate(texts):
        asked, said = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (question, answer))
        rows.append(example(at, [*asked, *said], len(asked)))
    found = probe(config, tokenizer, rows)
    assert (found[0].fits, found[1].fits) == (1, 0)
    model = AutoModelForCausalLM.from_pretrained(tiny_models["llama"]).eval()

    def losses(question: str, answer: str) -> np.ndarray:
        asked, said = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (question, answer))
        with torch.no_grad():
            log_p = model(torch.tensor([[*asked, *said]])).logits[0].double().log_softmax(-1)
        return -np.array([float(log_p[len(asked) + at - 1, token]) for at, token in enumerate(said)])

    answer = texts[0][1]
    gains = np.maximum(losses(texts[0][0], answer) - losses(texts[1][0], answer), 0)
    assert found[0].better == pytest.approx(np.sort(gains)[-5:].sum(), abs=1e-4)
