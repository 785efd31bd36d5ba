from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from lora_train.trainer.config.schema import DataSection
from lora_train.trainer.data.cache import Packed, cache_key, load_packed, save_packed, tokenizer_hash
from lora_train.trainer.data.examples import load_examples
from transformers import AutoTokenizer, PreTrainedTokenizerFast

ROWS = [{"instruction": "대한민국의 수도는?", "output": "서울입니다."}, {"instruction": "x", "output": "Blue 💙"}]
PACKED = Packed(
    np.arange(5, dtype=np.int32),
    np.array([False, True, False, True, True]),
    np.array([0, 2, 5]),
    np.array([0, 3]),
    np.array([], np.int64),
    truncated=1,
    format="koalpaca",
    n_skipped=1,
    skipped=("rows.jsonl 2행",),
)


class Mute(PreTrainedTokenizerFast):
    """A tokenizer that must not be asked to tokenize."""

    def __call__(self, *args, **kwargs):
        raise AssertionError("tokenized again")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    return tmp_path


@pytest.fixture
def tokenizer(tiny_models):
    return AutoTokenizer.from_pretrained(tiny_models["gpt_neox"])


def section(folder, **changes) -> DataSection:
    return DataSection(**{"train": str(folder / "rows.jsonl"), **changes})


def kept(folder) -> list:
    return sorted((folder / "cache" / "lora-train" / "tokenized").glob("*"))


def load(folder, tokenizer, limit=None, **changes):
    data = section(folder, **changes)
    return load_examples(data.train, data, tokenizer, limit)


def test_a_second_start_does_not_tokenize_again(folder, tokenizer, tiny_models):
    longest = max(len(example.input_ids) for example in load(folder, tokenizer, cache=False).examples)
    first = load(folder, tokenizer, cutoff_len=longest - 1)
    mute = Mute.from_pretrained(tiny_models["gpt_neox"])
    second = load(folder, mute, cutoff_len=longest - 1)
    assert second.fingerprint() == first.fingerprint()
    assert replace(second, examples=[]) == replace(first, examples=[])
    assert first.truncated == 1
    assert [path.suffix for path in kept(folder)] == [".safetensors"]
    # one flat array, not a copy for every row
    assert second.examples[0].input_ids.base is second.examples[1].input_ids.base


@pytest.mark.parametrize(
    "changes",
    [
        {"cutoff_len": 20},
        {"train_on_inputs": True},
        {"format": "alpaca"},
        {"prompt_template": "{instruction} {output}"},
        {"on_bad_row": "skip"},
        {"limit": 1},
    ],
)
def test_whatever_decides_the_tokens_decides_the_key(folder, tokenizer, tiny_models, changes):
    load(folder, tokenizer)
    with pytest.raises(AssertionError, match="tokenized again"):
        load(folder, Mute.from_pretrained(tiny_models["gpt_neox"]), **changes)


def test_other_bytes_and_another_tokenizer_are_tokenized_again(folder, tokenizer, tiny_models):
    load(folder, tokenizer)
    mute = Mute.from_pretrained(tiny_models["gpt_neox"])
    mute.add_tokens(["수도"])
    with pytest.raises(AssertionError, match="tokenized again"):
        load(folder, mute)
    (folder / "rows.jsonl").write_text(json.dumps(ROWS[0]))
    assert len(load(folder, tokenizer).examples) == 1


def test_tokenizer_hash_sees_vocabulary_template_and_special_tokens_but_not_use(tokenizer):
    before = tokenizer_hash(tokenizer)
    tokenizer(["a", "b c d"], truncation=True, max_length=2)
    assert tokenizer_hash(tokenizer) == before
    seen = {before}
    for change in ({"chat_template": "{{ x }}"}, {"eos_token": "a"}, {"pad_token": "b"}):
        for name, value in change.items():
            setattr(tokenizer, name, value)
        seen.add(tokenizer_hash(tokenizer))
    assert len(seen) == 4


def test_off_keeps_nothing(folder, tokenizer):
    load(folder, tokenizer, cache=False)
    assert kept(folder) == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: b"something else",
        lambda content: content[:-1] + bytes([content[-1] ^ 1]),
        lambda content: content.replace(b"koalpaca", b"coalpaca"),
    ],
)
def test_a_torn_or_foreign_file_is_made_again(folder, tokenizer, spoil):
    first = load(folder, tokenizer)
    (path,) = kept(folder)
    content = path.read_bytes()
    path.write_bytes(spoil(content))
    again = load(folder, tokenizer)
    assert (again.fingerprint(), again.format) == (first.fingerprint(), "koalpaca")
    assert path.read_bytes() == content


def test_a_cache_that_cannot_be_written_is_no_error(folder, tokenizer):
    (folder / "cache").write_text("a file where the folder should be")
    assert len(load(folder, tokenizer).examples) == 2


def test_what_is_kept_comes_back(folder):
    save_packed("key", PACKED)
    assert [path.name for path in kept(folder)] == ["key.safetensors"]
    found = load_packed("key")
    assert found is not None
    assert found.facts() == PACKED.facts()
    for name, array in PACKED.arrays().items():
        back = getattr(found, name)
        assert (back.dtype, back.tolist()) == (array.dtype, array.tolist())
    assert load_packed("other") is None
    assert len({cache_key({"a": 1}), cache_key({"a": 2}), cache_key({"b": 1})}) == 3


def test_skipped_rows_are_said_again(folder, tokenizer, tiny_models):
    (folder / "rows.jsonl").write_text("{\n" + json.dumps(ROWS[0]))
    first = load(folder, tokenizer, on_bad_row="skip")
    second = load(folder, Mute.from_pretrained(tiny_models["gpt_neox"]), on_bad_row="skip")
    assert second.skipped == first.skipped
    assert (second.n_skipped, [example.row for example in second.examples]) == (1, [1])
