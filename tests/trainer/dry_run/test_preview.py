from __future__ import annotations

import numpy as np
import pytest
from lora_train.trainer.config.schema import DataSection
from lora_train.trainer.console import Console
from lora_train.trainer.data.batches import Plan
from lora_train.trainer.data.examples import Dataset, Example, load_examples
from lora_train.trainer.dry_run.preview import bins, decoded, first_batches, show_batches
from transformers import AutoTokenizer

from ...conftest import DATA


@pytest.fixture(scope="module")
def tokenizer(tiny_models):
    return AutoTokenizer.from_pretrained(tiny_models["gpt_neox"])


@pytest.fixture(scope="module")
def dataset(tokenizer):
    return load_examples(str(DATA), DataSection(train=str(DATA), format="koalpaca"), tokenizer, limit=7)


def test_the_answer_and_the_end_are_marked_as_trained(dataset, tokenizer):
    for example in dataset.examples:
        prompt, answer = decoded(example, tokenizer)
        assert (prompt[1], answer[1]) == (False, True)
        assert prompt[0].startswith("### 질문: ")
        assert prompt[0].endswith("### 답변:")
        assert answer[0].startswith(" ")
        assert answer[0].endswith("<|endoftext|>")


def test_a_character_across_a_border_goes_to_the_piece_that_completes_it(tokenizer):
    text = "가나쀍"  # the last letter is not in the data: three tokens of one byte each
    ids = np.array(tokenizer(text)["input_ids"], np.int32)
    assert tokenizer.decode(ids[-3:].tolist()) == "쀍"
    for n_trained in (1, 2, 3):
        supervised = np.arange(len(ids)) >= len(ids) - n_trained
        assert decoded(Example(0, ids, supervised), tokenizer) == [("가나", False), ("쀍", True)]


def test_batches_are_those_of_the_run_with_rows_named_and_spans_marked(dataset, tokenizer, capsys):
    plan = Plan(dataset, 2, 1, seed=42)
    show_batches(plan, 0, tokenizer, Console())
    out = capsys.readouterr().out
    expected = [example.row for step in (1, 2) for example in plan.micro_batches(step)[0]]
    assert [int(line.split()[1]) for line in out.splitlines() if line.startswith("row ")] == expected
    assert out.count("⟦") == out.count("⟧") == len(expected) + 1  # the legend has one
    assert all(block.split("⟧")[0].endswith("<|endoftext|>") for block in out.split("⟦")[2:])


def test_long_pieces_lose_their_middle_and_control_characters_are_shown(tokenizer, capsys):
    ids = np.array(tokenizer("\x1b[2J" + "a" * 1000 + "z")["input_ids"], np.int32)
    example = Example(3, ids, np.ones(len(ids), bool))
    show_batches(Plan(Dataset("x", [example]), 1, 1, seed=0), 0, tokenizer, Console())
    out = capsys.readouterr().out
    assert r"⟦\x1b[2Jaaa" in out
    assert "\x1b" not in out
    assert "...(408 characters)..." in out
    assert out.rstrip().endswith("aaz⟧")


def test_first_batches_pass_over_those_that_are_left_out(dataset):
    plan = Plan(dataset, 1, 2, seed=0)
    first = plan.micro_batches(1)[0][0].row
    plan = Plan(dataset, 1, 2, seed=0, skip=frozenset([first]))
    assert [(step, len(rows)) for step, rows in first_batches(plan, 0)] == [(1, 1), (2, 1)]


def test_bins_cover_every_length():
    assert bins([1, 10, 11, 20, 95, 100]) == [
        (1, 10, 2), (11, 20, 2), (21, 30, 0), (31, 40, 0), (41, 50, 0),
        (51, 60, 0), (61, 70, 0), (71, 80, 0), (81, 90, 0), (91, 100, 2),
    ]  # fmt: skip
    assert bins([2, 3, 3]) == [(1, 1, 0), (2, 2, 1), (3, 3, 2)]
