"""The token that answers were trained to end with is the one that stops an answer."""

from __future__ import annotations

import json

import pytest
from lora_train.trainer.cli import main
from lora_train.trainer.config.schema import Config
from lora_train.trainer.verbs.ends import trained_end
from transformers import AutoTokenizer

from ..data.test_conversations import CHATML, PLAIN
from .test_merge import make_run


@pytest.fixture
def tokenizer(tiny_models):
    tokenizer = AutoTokenizer.from_pretrained(tiny_models["llama"])
    tokenizer.add_tokens(["<|im_end|>"], special_tokens=True)
    return tokenizer


def config(**data) -> Config:
    return Config.model_validate({"model": {"name_or_path": "x/y"}, "data": {"train": "x/y", **data}})


def test_the_end_is_the_templates_or_the_end_of_text(tokenizer):
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert trained_end(config(format="messages", chat_template=CHATML), tokenizer) == end
    assert trained_end(config(format="messages", chat_template=PLAIN), tokenizer) is None
    assert trained_end(config(format="messages"), tokenizer) is None
    assert trained_end(config(format="koalpaca"), tokenizer) == tokenizer.eos_token_id
    assert trained_end(config(prompt_template="{a}{b}"), tokenizer) == tokenizer.eos_token_id
    assert trained_end(None, tokenizer) is None


@pytest.mark.parametrize(("form", "stops"), [("messages", [512, 0]), ("koalpaca", 0)])
def test_a_merged_folder_stops_where_it_was_trained_to(tiny_models, tmp_path, tokenizer, form, stops):
    run = make_run(tmp_path / "run", tiny_models["llama"], data={"train": "x.jsonl", "format": form})
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(run / "adapter")
    assert main(["merge", str(run)]) == 0
    generation = json.loads((run / "merged" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == stops
