"""Rows without an answer: what is asked of a model is what stands before the answer of the same row with one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lora_train.trainer.config.schema import DataSection
from lora_train.trainer.data.examples import load_examples
from lora_train.trainer.verbs.answers.predict import begin_of_answer
from lora_train.trainer.verbs.answers.questions import PLACEHOLDER, asked, question_settings, questions
from transformers import AutoTokenizer

CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
TURNS = [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c"}, {"role": "user", "content": "d"}]
GPT = {"from": "gpt", "value": "e"}
ANSWER = {"role": "assistant", "content": "e"}
SHARED = [{"from": "human", "value": "a b"}]


def data_of(**settings: Any) -> DataSection:
    return DataSection.model_validate({"train": "rows.jsonl", **settings})


@pytest.mark.parametrize(
    ("settings", "question", "answered"),
    [
        ({}, {"instruction": "a b"}, {"instruction": "a b", "output": "c"}),
        ({"train_on_inputs": True}, {"instruction": "a b"}, {"instruction": "a b", "output": "c"}),
        ({}, {"instruction": "a b", "input": "x", "output": None}, {"instruction": "a b", "input": "x", "output": "c"}),
        ({}, {"instruction": "a b", "output": ""}, {"instruction": "a b", "output": "c"}),
        ({}, {"prompt": "a b "}, {"prompt": "a b ", "completion": "c"}),
        ({"columns": {"instruction": "q", "output": "r"}}, {"q": "a b"}, {"q": "a b", "r": "c"}),
        ({"prompt_template": "Q {x}\nA {y}"}, {"x": "a b"}, {"x": "a b", "y": "c"}),
        ({}, {"question": "a b"}, {"question": "a b", "answer": "c"}),
        ({"chat_template": CHAT}, {"messages": TURNS}, {"messages": [*TURNS, ANSWER]}),
        (
            {"chat_template": CHAT},
            {"conversations": SHARED},
            {"conversations": [*SHARED, GPT]},
        ),
    ],
)
def test_the_question_is_what_stands_before_the_answer(tiny_models, tmp_path, settings, question, answered):
    tokenizer = AutoTokenizer.from_pretrained(tiny_models["llama"])
    found = []
    for name, row in (("asked", question), ("answered", answered)):
        file = tmp_path / f"{name}.jsonl"
        file.write_text(json.dumps(row) + "\n", encoding="utf-8")
        own = question_settings(data_of(**settings))
        (*_, example) = load_examples(questions(str(file), own), own, tokenizer).examples
        found.append(example.input_ids[: begin_of_answer(example.supervised)].tolist())
    assert found[0] == found[1]
    assert found[0]


@pytest.mark.parametrize(
    "row",
    [{"text": "a"}, {"instruction": "a", "output": "b"}, {"messages": TURNS[:2]}, {"messages": []}, "no object", None],
)
def test_a_row_with_an_answer_or_without_a_question_stays_as_it_is(row):
    assert asked(row, data_of()) is row


def test_a_row_that_cannot_be_read_names_its_file_and_line(tiny_models, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_models["llama"])
    file = Path(tmp_path / "rows.jsonl")
    file.write_text('{"instruction": "a"}\n{"instruction": 5}\n')
    own = question_settings(data_of())
    with pytest.raises(Exception, match=r"rows\.jsonl line 2"):
        load_examples(questions(str(file), own), own, tokenizer)
    assert asked({"instruction": "a"}, own)["output"] == PLACEHOLDER
