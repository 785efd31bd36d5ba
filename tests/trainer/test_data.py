from __future__ import annotations

import json

import pytest
from lora_train.trainer.config import DataSection
from lora_train.trainer.data import alpaca_prompt, koalpaca_prompt, load_examples, split_held_out, tokenize
from lora_train.trainer.errors import UserError
from transformers import AutoTokenizer

from ..conftest import DATA

ROWS = [
    {"instruction": "대한민국의 수도는?", "output": "서울입니다."},
    {"instruction": "Name a colour", "output": "Blue 💙"},
]


@pytest.fixture(scope="module")
def tokenizer(tiny_models):
    return AutoTokenizer.from_pretrained(tiny_models["gpt_neox"])


def section(**changes) -> DataSection:
    return DataSection(**{"train": "rows.jsonl", "format": "koalpaca", **changes})


def jsonl(folder, rows) -> str:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def errors(source, tokenizer, **changes) -> list[str]:
    with pytest.raises(UserError) as raised:
        load_examples(source, section(**changes), tokenizer)
    return [problem.error.replace(source, "FILE") for problem in raised.value.problems]


def test_koalpaca_trains_on_the_answer_and_the_end_of_text_only(tmp_path, tokenizer):
    dataset = load_examples(jsonl(tmp_path, ROWS), section(), tokenizer)
    for row, example in zip(ROWS, dataset.examples, strict=True):
        trained = example.input_ids[example.supervised]
        masked = example.input_ids[~example.supervised]
        assert tokenizer.decode(trained) == f" {row['output']}<|endoftext|>"
        assert tokenizer.decode(masked) == f"### 질문: {row['instruction']}\n\n### 답변:"


def test_a_token_across_the_border_is_trained_on(tokenizer):
    prompt, answer = "서울입", "니다 네"
    ((ids, supervised),) = tokenize([(prompt, answer)], tokenizer, train_on_inputs=False)
    spans = tokenizer(prompt + answer, return_offsets_mapping=True).offset_mapping
    (across,) = [index for index, (start, end) in enumerate(spans) if start < len(prompt) < end]
    assert tokenizer.decode(ids[across]) == "입니다"
    assert supervised.tolist() == [False] * across + [True] * (len(ids) - across)


def test_train_on_inputs_trains_on_everything_but_the_first_token(tmp_path, tokenizer):
    dataset = load_examples(jsonl(tmp_path, ROWS), section(train_on_inputs=True), tokenizer)
    for example in dataset.examples:
        assert example.supervised.tolist() == [False] + [True] * (len(example.input_ids) - 1)


def test_alpaca_and_text_formats(tmp_path, tokenizer):
    prompt, answer = alpaca_prompt({"instruction": "Add", "input": "1 2", "output": "3"})
    assert prompt.endswith("### Instruction:\nAdd\n\n### Input:\n1 2\n\n### Response:\n")
    assert answer == "3"
    assert "Input" not in alpaca_prompt({"instruction": "Add", "input": "", "output": "3"})[0]
    assert koalpaca_prompt(ROWS[0]) == ("### 질문: 대한민국의 수도는?\n\n### 답변:", " 서울입니다.")
    text = load_examples(jsonl(tmp_path, [{"text": "hello there"}]), section(format="text"), tokenizer).examples[0]
    assert tokenizer.decode(text.input_ids) == "hello there<|endoftext|>"
    assert text.n_supervised == len(text.input_ids) - 1


def test_truncated_rows_lose_their_end_and_rows_without_an_answer_are_dropped(tmp_path, tokenizer):
    long_question = {"instruction": "가" * 80, "output": "네"}
    long_answer = {"instruction": "가", "output": "네" * 80}
    dataset = load_examples(jsonl(tmp_path, [long_question, long_answer, ROWS[1]]), section(cutoff_len=60), tokenizer)
    assert [example.row for example in dataset.examples] == [1, 2]
    assert (list(dataset.dropped), dataset.truncated) == ([0], 2)
    assert len(dataset.examples[0].input_ids) == 60
    assert dataset.examples[0].input_ids[-1] != tokenizer.eos_token_id
    assert errors(jsonl(tmp_path, [long_question]), tokenizer, cutoff_len=60) == [
        "FILE: no row has a token to train on within data.cutoff_len=60"
    ]


def test_limit_takes_the_first_rows(tokenizer):
    dataset = load_examples(str(DATA), section(), tokenizer, limit=3)
    assert [example.row for example in dataset.examples] == [0, 1, 2]


def test_bad_rows_are_named_by_file_and_line(tmp_path, tokenizer):
    rows = ["{", ROWS[0]]
    assert errors(jsonl(tmp_path, rows), tokenizer)[0].startswith("FILE line 1 is not JSON: ")
    rows = [ROWS[0], "", {"instruction": "x"}, {"instruction": 3, "output": " "}, "[1]"]
    assert errors(jsonl(tmp_path, rows), tokenizer) == [
        "FILE line 3 has no field output; it has: instruction",
        "FILE line 4: instruction is a int, not text",
        "FILE line 4: output is empty",
        "FILE line 5 is a list, not an object with fields",
    ]
    assert errors(jsonl(tmp_path, ["{"] * 9), tokenizer)[-1] == "4 more rows like these"
    assert errors(jsonl(tmp_path, [""]), tokenizer) == ["FILE holds no rows"]


def test_hub_name_that_cannot_be_reached_is_an_error_with_the_name(tokenizer):
    with pytest.raises(UserError, match="data set owner/nothing cannot be loaded from the hub"):
        load_examples("owner/nothing", section(), tokenizer)


def test_held_out_rows_are_disjoint_and_repeatable(tokenizer):
    dataset = load_examples(str(DATA), section(), tokenizer, limit=50)
    train, held_out = split_held_out(dataset, 0.1, seed=1)
    assert (len(train.examples), len(held_out.examples)) == (45, 5)
    rows = [{example.row for example in part.examples} for part in (train, held_out)]
    assert rows[0] | rows[1] == set(range(50))
    assert split_held_out(dataset, 0.1, seed=1)[1].fingerprint() == held_out.fingerprint()
    assert split_held_out(dataset, 0.1, seed=2)[1].fingerprint() != held_out.fingerprint()
    with pytest.raises(UserError, match="leaves none to train on"):
        split_held_out(dataset, 0.999, seed=1)
