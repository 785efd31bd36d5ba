"""From files of rows with labels to tokens and numbers; what is wrong is named with file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lora_train.trainer.config.schema import Config
from lora_train.trainer.config.settings import with_settings
from lora_train.trainer.console import Console
from lora_train.trainer.data.dataset import IGNORE_INDEX, Dataset
from lora_train.trainer.data.labels.balance import report_coverage, report_labels
from lora_train.trainer.data.labels.load import Reading, balanced, class_counts, load_labelled, weighted, with_labels
from lora_train.trainer.data.load import load_data
from lora_train.trainer.errors import UserError

from ...classifiers import rows_of_kind, tokenizer_of, write

TOKENIZER = tokenizer_of(("input_ids", "token_type_ids", "attention_mask"))
TOKENIZER.model_max_length = 40


def config_of(path: Path, task: Any = "seq_cls", **settings: Any) -> Config:
    config = Config.model_validate({"model": {"name_or_path": "x", "task": task}, "data": {"train": str(path)}})
    return with_settings(config, settings)


def load(path: Path, task: Any = "seq_cls", longest: Any = 40, **settings: Any) -> Dataset:
    return load_labelled(str(path), Reading(config_of(path, task, **settings), TOKENIZER, longest))


def errors(path: Path, rows: list[Any], **settings: Any) -> list[str]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError) as caught:
        load(path, **settings)
    return [problem.error for problem in caught.value.problems]


def test_one_label_a_row(tmp_path):
    rows = [{"text": "the film", "label": "good"}, {"text": "dull", "label": "bad"}]
    data = load(write(tmp_path / "a.jsonl", rows))
    assert data.labels is not None
    assert data.labels.names == ("bad", "good")
    first, second = data.examples
    assert TOKENIZER.decode(first.input_ids.tolist()) == "[CLS] the film [SEP]"
    assert first.labels is not None
    assert second.labels is not None
    assert (first.labels.tolist(), second.labels.tolist()) == ([1], [0])
    assert first.supervised.tolist() == [False, False, False, True]
    assert (first.n_supervised, first.counts) == (1, 1)
    assert data.n_characters == len("the film") + len("dull")


def test_two_texts_are_told_apart(tmp_path):
    rows = [{"premise": "the film", "hypothesis": "a plot", "label": n} for n in (0, 1)]
    example = load(write(tmp_path / "a.jsonl", rows)).examples[0]
    assert TOKENIZER.decode(example.input_ids.tolist()) == "[CLS] the film [SEP] a plot [SEP]"
    assert example.token_types is not None
    assert example.token_types.tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_a_row_is_cut_and_keeps_its_end(tmp_path):
    rows = [{"text": "the film " * 9, "label": n} for n in (0, 1)]
    data = load(write(tmp_path / "a.jsonl", rows), longest=6)
    assert data.truncated == 2
    assert TOKENIZER.decode(data.examples[0].input_ids.tolist()) == "[CLS] the film the film [SEP]"


def test_words_have_their_label_at_their_first_token(tmp_path):
    rows = [{"tokens": ["the", "film.fine"], "labels": ["O", "B-GOOD"]}]
    example = load(write(tmp_path / "a.jsonl", rows), task="token_cls").examples[0]
    assert TOKENIZER.convert_ids_to_tokens(example.input_ids.tolist()) == [
        "[CLS]",
        "the",
        "film",
        "[UNK]",
        "fine",
        "[SEP]",
    ]
    assert example.labels is not None
    assert example.labels.tolist() == [IGNORE_INDEX, 1, 0, IGNORE_INDEX, IGNORE_INDEX, IGNORE_INDEX]
    assert example.n_supervised == 2


def test_faults_name_file_and_line(tmp_path):
    good = [{"text": "fine", "label": "a"}, {"text": "dull", "label": "b"}]
    path = tmp_path / "rows.jsonl"
    found = errors(path, [*good, {"text": "x"}, {"text": "x", "label": None}, {"text": "x", "label": float("nan")},
                          {"text": "", "label": "a"}, {"text": 3, "label": "a"}])  # fmt: skip
    assert [text.partition(":")[0].partition(" has")[0] for text in found] == [f"{path} line {n}" for n in range(3, 8)]
    assert "has no field label" in found[0]
    assert "has no label" in found[1]
    assert "has no label" in found[2]


def test_a_label_that_the_training_rows_have_not(tmp_path):
    train = write(tmp_path / "train.jsonl", rows_of_kind("single"))
    write(tmp_path / "eval.jsonl", [{"text": "fine", "label": "good"}, {"text": "fine", "label": "meh"}])
    config = config_of(train, **{"data.eval": str(tmp_path / "eval.jsonl"), "training.eval_strategy": "epoch"})
    with pytest.raises(UserError, match=r"eval\.jsonl line 2: label meh is not among bad, good"):
        load_data(config, TOKENIZER, Console(silent=True))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"text": "a", "label": ["x"]}, {"text": "b", "label": "x"}], "label x is not a list"),
        ([{"text": "a", "label": "x"}, {"text": "b", "label": "x"}], "the same label"),
        ([{"text": "a", "label": {"x": 1}}], "label is an object"),
        ([{"text": "a", "label": 1.5}, {"text": "a", "label": "much"}], "label much is no number"),
        ([{"text": "a", "label": 1e400}], "label is inf"),
    ],
)
def test_labels_that_do_not_go_together(tmp_path, rows, said):
    assert said in errors(tmp_path / "rows.jsonl", rows)[0]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"tokens": ["a", "b"], "labels": ["O"]}, "1 labels for 2 words"),
        ({"tokens": "a b", "labels": ["O", "O"]}, "is not a list of words"),
        ({"tokens": ["a"], "labels": "O"}, "label is text"),
        ({"tokens": ["a"], "labels": [None]}, "has no label"),
        ({"tokens": ["a"], "labels": [0.5]}, "label is a number"),
        ({"tokens": [], "labels": []}, "is not a list of words"),
    ],
)
def test_words_and_labels_that_do_not_go_together(tmp_path, row, said):
    assert said in errors(tmp_path / "rows.jsonl", [row], task="token_cls")[0]


def test_bad_rows_can_be_left_out(tmp_path):
    rows = [{"text": "fine", "label": "a"}, {"text": "x"}, {"text": "dull", "label": "b"}]
    data = load(write(tmp_path / "a.jsonl", rows), **{"data.on_bad_row": "skip"})
    assert [example.row for example in data.examples] == [0, 2]
    assert data.n_skipped == 1


def test_columns_and_usual_names(tmp_path):
    rows = [{"document": "fine", "stars": n, "id": 7} for n in (1, 5)]
    data = load(write(tmp_path / "a.jsonl", rows))
    assert data.labels is not None
    assert data.labels.names == ("1", "5")
    assert ("data.read_as", (("text", "document"), ("label", "stars"))) in [note for note, _ in data.notes]
    assert ("data.not_used", (("field", "id"),)) in [note for note, _ in data.notes]
    named = load(write(tmp_path / "b.jsonl", [{"x": "fine", "y": n} for n in (0, 1)]),
                 **{"data.columns": {"text": "x", "label": "y"}})  # fmt: skip
    assert len(named.examples) == 2


def test_the_labels_that_were_found_go_into_the_configuration(tmp_path):
    path = write(tmp_path / "a.jsonl", rows_of_kind("single"))
    resolved = with_labels(config_of(path), load(path))
    assert resolved.data.labels == ["bad", "good"]
    assert resolved.model.problem_type == "single_label_classification"


def test_own_names_keep_their_order_where_they_are_those_of_the_rows(tmp_path):
    path = write(tmp_path / "a.jsonl", rows_of_kind("single"))
    reading = Reading(config_of(path), TOKENIZER, 40, own_names=("good", "bad"))
    found = load_labelled(str(path), reading).labels
    assert found is not None
    assert found.names == ("good", "bad")


def test_balanced_weights(tmp_path):
    rows = [{"text": "fine", "label": name} for name in ("a", "a", "a", "b")]
    path = write(tmp_path / "a.jsonl", rows)
    data = load(path)
    assert class_counts(data) == {"a": 3, "b": 1}
    assert balanced(data) == {"a": pytest.approx(4 / 6), "b": pytest.approx(2)}
    config = with_labels(config_of(path, **{"training.class_weights": "balanced"}), data)
    assert [example.counts for example in weighted(data, config).examples] == pytest.approx([2 / 3] * 3 + [2])
    several = write(tmp_path / "b.jsonl", [{"text": "fine", "label": own} for own in (["a"], ["a", "b"], [], ["a"])])
    assert balanced(load(several)) == {"a": pytest.approx(1 / 3), "b": 3}


def test_a_weight_of_no_label_is_refused(tmp_path):
    path = write(tmp_path / "a.jsonl", rows_of_kind("single"))
    with pytest.raises(UserError, match="meh is no label"):
        with_labels(config_of(path, **{"training.class_weights": {"meh": 2.0}}), load(path))


def said(data: Dataset, capsys) -> str:
    report_labels(data, None, Console())
    report_coverage(data, TOKENIZER, Console())
    return capsys.readouterr().out


def test_classes_and_their_shares_are_printed(tmp_path, capsys):
    rows = [{"text": "fine", "label": name} for name in "aaaaaaaaab"]
    text = said(load(write(tmp_path / "a.jsonl", rows)), capsys)
    assert "2 classes: a 9 (90.0%), b 1 (10.0%)" in text
    assert "90% of the rows are a" in text


def test_an_even_share_needs_no_word(tmp_path, capsys):
    rows = [{"text": "fine", "label": n} for n in (0, 1)]
    assert "warn" not in said(load(write(tmp_path / "a.jsonl", rows)), capsys)


def test_values_are_described(tmp_path, capsys):
    rows = [{"text": "fine", "label": value} for value in (1.0, 2.0, 3.5)]
    assert "numbers from 1 to 3.5" in said(load(write(tmp_path / "a.jsonl", rows)), capsys)


def test_a_tokenizer_that_does_not_know_the_words_is_told(tmp_path, capsys):
    rows = [{"text": text, "label": n} for n, text in enumerate(("fine film", "영화 film film"))]
    text = said(load(write(tmp_path / "a.jsonl", rows)), capsys)
    assert "20.0% of them unknown" in text
    assert "20.0% of the tokens are [UNK]" in text
    ids = np.concatenate([e.input_ids for e in load(tmp_path / "a.jsonl").examples])
    assert int((ids == TOKENIZER.unk_token_id).sum()) == 1
