"""A row without its question, and what the model says of both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from lora_train.trainer.config.schema import Config
from lora_train.trainer.model.load import load_tokenizer
from lora_train.trainer.rows.probe import opening_token, probe, without_question
from transformers import AutoModelForCausalLM

from .test_texts import example


def test_the_question_is_taken_away_and_the_answer_stays():
    alone = without_question(example(4, [5, 6, 7, 8, 9], supervised_from=3), opening=1)
    assert alone is not None
    assert alone.input_ids.tolist() == [1, 8, 9]
    assert alone.supervised.tolist() == [False, True, True]
    assert without_question(example(4, [5, 6, 7]), opening=1) is None, "there is no question"


def test_the_opening_is_a_token_that_texts_begin_or_end_with():
    class Tokenizer:
        bos_token_id, eos_token_id, pad_token_id = None, 2, 0

    assert opening_token(Tokenizer()) == 2


def test_the_ratio_is_that_of_the_base_models_losses(tiny_models: dict[str, Path]):
    """Of plain transformers, one row at a time."""
    config = Config.model_validate({"model": {"name_or_path": str(tiny_models["llama"])}, "data": {"train": "t"}})
    tokenizer = load_tokenizer(config)
    rows = [example(3, [5, 6, 7, 8, 9, 11], supervised_from=3), example(8, [5, 6]), example(9, [4, 3, 9], 2)]
    done: list[int] = []
    found = probe(config, tokenizer, rows, done.append)
    assert done == [1, 2, 3]
    assert set(found) == {3, 9}, "a row without a question has no ratio"
    model = AutoModelForCausalLM.from_pretrained(tiny_models["llama"]).eval()

    def loss(ids: list[int], first: int) -> float:
        with torch.no_grad():
            log_p = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        return -float(np.mean([log_p[at - 1, ids[at]] for at in range(first, len(ids))]))

    opening = opening_token(tokenizer)
    assert found[3] == pytest.approx(loss([5, 6, 7, 8, 9, 11], 3) / loss([opening, 8, 9, 11], 1), rel=1e-4)
    assert found[9] == pytest.approx(loss([4, 3, 9], 2) / loss([opening, 9], 1), rel=1e-4)
