from __future__ import annotations

import json

import datasets
import pytest
from lora_train.trainer.config.schema import Config, DataSection
from lora_train.trainer.console import Console
from lora_train.trainer.data.examples import load_examples
from lora_train.trainer.data.load import load_data, split_held_out, with_format
from lora_train.trainer.errors import UserError
from transformers import AutoTokenizer

from ...conftest import DATA

ROWS = [
    {"instruction": "대한민국의 수도는?", "output": "서울입니다."},
    {"instruction": "Name a colour", "output": "Blue 💙"},
]


@pytest.fixture(scope="module")
def tokenizer(tiny_models):
    return AutoTokenizer.from_pretrained(tiny_models["gpt_neox"])


def section(**changes) -> DataSection:
    return DataSection(**{"train": "rows.jsonl", "cache": False, **changes})


def jsonl(folder, rows, name="rows.jsonl") -> str:
    path = folder / name
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def errors(source, tokenizer, **changes) -> list[str]:
    with pytest.raises(UserError) as raised:
        load_examples(source, section(**changes), tokenizer)
    return [problem.error.replace(source, "FILE") for problem in raised.value.problems]


def trained(tokenizer, example) -> str:
    return tokenizer.decode(example.input_ids[example.supervised])


def test_koalpaca_trains_on_the_answer_and_the_end_of_text_only(tmp_path, tokenizer):
    dataset = load_examples(jsonl(tmp_path, ROWS), section(), tokenizer)
    assert dataset.format == "koalpaca"
    for row, example in zip(ROWS, dataset.examples, strict=True):
        masked = example.input_ids[~example.supervised]
        assert trained(tokenizer, example) == f" {row['output']}<|endoftext|>"
        assert tokenizer.decode(masked) == f"### 질문: {row['instruction']}\n\n### 답변:"


def test_rows_under_another_name_are_not_called_turns(tmp_path, tokenizer):
    source = jsonl(tmp_path, [{"rows": ROWS}])
    with pytest.raises(UserError) as raised:
        load_examples(source, section(), tokenizer)
    (found,) = raised.value.problems
    assert "does not know rows with the fields rows" in found.error
    assert "turns of a conversation" not in found.hint


def test_train_on_inputs_trains_on_everything_but_the_first_token(tmp_path, tokenizer):
    dataset = load_examples(jsonl(tmp_path, ROWS), section(train_on_inputs=True), tokenizer)
    for example in dataset.examples:
        assert example.supervised.tolist() == [False] + [True] * (len(example.input_ids) - 1)


def test_the_users_format_wins_over_what_the_fields_say(tmp_path, tokenizer):
    rows = [{"instruction": "Add", "input": "1 2", "output": "3", "text": "plain"}]
    source = jsonl(tmp_path, rows)
    assert load_examples(source, section(), tokenizer).format == "alpaca"
    text = load_examples(source, section(format="text"), tokenizer)
    assert tokenizer.decode(text.examples[0].input_ids) == "plain<|endoftext|>"
    own = load_examples(source, section(prompt_template="{instruction} {input} = {output}!"), tokenizer)
    assert own.format == "prompt_template"
    assert tokenizer.decode(own.examples[0].input_ids) == "Add 1 2 = 3!<|endoftext|>"
    assert trained(tokenizer, own.examples[0]).lstrip() == "3!<|endoftext|>"


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


def test_rows_of_several_chunks_keep_their_numbers(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr("lora_train.trainer.data.examples.CHUNK", 7)
    source = jsonl(tmp_path, ["{" if index == 110 else ROWS[index % 2] for index in range(130)])
    dataset = load_examples(source, section(on_bad_row="skip"), tokenizer)
    assert [example.row for example in dataset.examples] == [index for index in range(130) if index != 110]
    assert trained(tokenizer, dataset.examples[-1]) == " Blue 💙<|endoftext|>"
    assert errors(source, tokenizer)[0].startswith("FILE line 111 is not JSON")


def test_bad_rows_are_named_by_file_and_line(tmp_path, tokenizer):
    rows = [ROWS[0], "", {"instruction": "x"}, {"instruction": 3, "output": " "}, "[1]", "{"]
    found = errors(jsonl(tmp_path, rows), tokenizer)
    assert found[:-1] == [
        "FILE line 3 has no field output; it has: instruction",
        "FILE line 4: instruction is a whole number, not text",
        "FILE line 4: output is empty",
        "FILE line 5 is a list, not an object with fields",
    ]
    assert found[-1].startswith("FILE line 6 is not JSON: ")
    assert errors(jsonl(tmp_path, [ROWS[0], *["{"] * 9]), tokenizer)[-1] == "4 more rows like these"
    assert errors(jsonl(tmp_path, ["{"] * 200), tokenizer)[-1] == "195 more rows like these"
    assert errors(jsonl(tmp_path, [""]), tokenizer) == ["FILE holds no rows"]
    assert errors(jsonl(tmp_path, [{"q": "x"}]), tokenizer) == [
        "FILE: data.format=auto does not know rows with the fields q"
    ]
    assert errors(jsonl(tmp_path, [{"instruction": "\ud800", "output": "x"}]), tokenizer) == [
        "FILE line 1: instruction holds half a character (a lone surrogate)"
    ]


def test_prompt_template_with_an_unknown_field_lists_the_rows_fields(tmp_path, tokenizer):
    assert errors(jsonl(tmp_path, ROWS), tokenizer, prompt_template="{question}: {output}") == [
        "FILE line 1 has no field question; it has: instruction, output",
        "FILE line 2 has no field question; it has: instruction, output",
    ]


def test_skip_leaves_bad_rows_out_and_keeps_the_numbers_of_the_others(tmp_path, tokenizer):
    source = jsonl(tmp_path, ["{", ROWS[0], {"instruction": "x"}, ROWS[1], *["[]"] * 6])
    dataset = load_examples(source, section(on_bad_row="skip"), tokenizer)
    assert [example.row for example in dataset.examples] == [1, 3]
    assert dataset.n_skipped == 8
    assert dataset.skipped[1] == f"{source} line 3 has no field output; it has: instruction"
    assert len(dataset.skipped) == 5
    assert errors(jsonl(tmp_path, [{"instruction": "x", "output": ""}]), tokenizer, on_bad_row="skip") == [
        "FILE: no row can be used",
        "FILE line 1: output is empty",
    ]


def test_hub_name_that_cannot_be_reached_is_an_error_with_the_name(tokenizer):
    with pytest.raises(UserError, match="data set owner/nothing cannot be loaded from the hub"):
        load_examples("owner/nothing", section(), tokenizer)


def test_a_hub_data_set_is_read_by_row(tokenizer, monkeypatch):
    """The hub itself cannot be asked here; what it gives is a real data set."""
    table = datasets.Dataset.from_list([*ROWS, {"instruction": "x", "output": None}])
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: {"train": table}[split])
    assert errors("owner/rows", tokenizer) == ["FILE row 2: output is null, not text"]
    dataset = load_examples("owner/rows", section(on_bad_row="skip"), tokenizer)
    assert [trained(tokenizer, example) for example in dataset.examples] == [
        f" {row['output']}<|endoftext|>" for row in ROWS
    ]


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


def config(data: dict, **training) -> Config:
    return Config.model_validate(
        {"model": {"name_or_path": "x/y"}, "data": {"cache": False, **data}, "training": training}
    )


def test_eval_limit_takes_the_first_evaluation_rows_and_trains_on_none_of_the_held_out(tokenizer):
    data = {"train": str(DATA), "limit": 50, "eval_fraction": 0.2}
    quiet = Console(silent=True)
    _, whole = load_data(config(data, eval_strategy="epoch"), tokenizer, quiet)
    train, part = load_data(config(data | {"eval_limit": 3}, eval_strategy="epoch"), tokenizer, quiet)
    assert whole is not None
    assert part is not None
    assert [example.row for example in part.examples] == [example.row for example in whole.examples][:3]
    assert len(train.examples) == 40
    separate = {"train": str(DATA), "limit": 5, "eval": str(DATA), "eval_limit": 3}
    _, rows = load_data(config(separate, eval_strategy="epoch"), tokenizer, quiet)
    assert rows is not None
    assert [example.row for example in rows.examples] == [0, 1, 2]


def test_evaluation_rows_that_are_trained_on_are_said(tokenizer, capsys):
    data = {"train": str(DATA), "limit": 5, "eval": str(DATA), "eval_limit": 20}
    _, rows = load_data(config(data, eval_strategy="epoch"), tokenizer, Console())
    assert rows is not None
    assert rows.overlap is not None
    assert rows.overlap.exact == [(i, i) for i in range(5)]
    assert "5 of 20 evaluation rows are training rows" in capsys.readouterr().out
    _, apart = load_data(
        config({"train": str(DATA), "eval_fraction": 0.1}, eval_strategy="epoch"), tokenizer, Console()
    )
    assert apart is not None
    assert not apart.overlap
    assert "training rows" not in capsys.readouterr().out


def test_evaluation_rows_take_the_format_of_the_training_rows(tmp_path, tokenizer, capsys):
    train = jsonl(tmp_path, ROWS)
    also = jsonl(tmp_path, [{"input": "", **row} for row in ROWS], "eval.jsonl")
    asked = config({"train": train, "eval": also}, eval_strategy="epoch")
    train_data, eval_data = load_data(asked, tokenizer, Console())
    assert eval_data is not None
    assert train_data.fingerprint() == eval_data.fingerprint()
    assert f"data   {train}: format koalpaca, by the fields of its rows" in capsys.readouterr().out
    assert with_format(asked, train_data).data.format == "koalpaca"


def test_skipped_rows_are_said(tmp_path, tokenizer, capsys):
    source = jsonl(tmp_path, ["{}", *ROWS])
    load_data(config({"train": source, "on_bad_row": "skip"}), tokenizer, Console())
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].endswith(f"{source}: 1 bad rows are left out (data.on_bad_row: skip)")
    assert lines[2].endswith(f"{source} line 1 has no field instruction; it has: -")
