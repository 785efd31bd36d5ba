"""How tokenizers cut text, by llama.cpp's names."""

from __future__ import annotations

import json

import pytest
from lora_train.trainer.errors import UserError
from lora_train.trainer.export.vocabulary import has_prefix, pattern_of, scores_of, tokens_of
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)  # fmt: skip
QWEN2 = LLAMA3.replace("{1,3}", "")


def told(pre, normalizer=None, **model) -> dict:
    tokenizer = Tokenizer(models.BPE({"a": 0}, [], **model))
    tokenizer.pre_tokenizer = pre
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    return json.loads(tokenizer.to_str())


def byte_level(**values):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, **values)


def split(pattern: str):
    return pre_tokenizers.Split(Regex(pattern), "isolated")


CUTS = {
    "gpt-2": told(byte_level()),
    "smollm": told(pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level()])),
    "llama-bpe": told(pre_tokenizers.Sequence([split(LLAMA3), byte_level(use_regex=False)]), ignore_merges=True),
    "qwen2": told(pre_tokenizers.Sequence([split(QWEN2), byte_level(use_regex=False)]), normalizers.NFC()),
}


@pytest.mark.parametrize("name", CUTS)
def test_the_four_patterns(name):
    assert pattern_of(CUTS[name]) == name


@pytest.mark.parametrize(
    "other",
    [
        told(pre_tokenizers.ByteLevel(add_prefix_space=True)),
        told(pre_tokenizers.Whitespace()),
        told(byte_level(), normalizers.Lowercase()),
        told(byte_level(use_regex=False)),
        told(pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=False), byte_level()])),
        told(pre_tokenizers.Sequence([split(LLAMA3), byte_level(use_regex=False)])),  # merges first
        told(pre_tokenizers.Sequence([split(QWEN2), byte_level()])),
        told(pre_tokenizers.Sequence([split(r"\p{N}{1,3}"), byte_level(use_regex=False)])),
    ],
)
def test_others_are_refused_with_what_they_are(other):
    with pytest.raises(UserError, match="would cut text otherwise") as raised:
        pattern_of(other)
    assert "ByteLevel" in str(raised.value) or "Whitespace" in str(raised.value)


def test_a_sentencepiece_vocabulary():
    vocabulary = {"<unk>": 0, "<s>": 1, "<0x0A>": 2, "▁": 3, "a": 4, "b": 5, "ab": 6, "▁ab": 7}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("a", "b"), ("▁", "ab")], byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.ByteFallback()
    tokenizer.add_special_tokens(["<unk>", "<s>"])
    tokenizer.add_tokens(["<mine>"])
    own = json.loads(tokenizer.to_str())
    tokens, kinds = tokens_of(own, 10, "<unk>")
    assert tokens == ["<unk>", "<s>", "<0x0A>", "▁", "a", "b", "ab", "▁ab", "<mine>", "[PAD9]"]
    assert kinds == [2, 3, 6, 1, 1, 1, 1, 1, 4, 5]
    assert scores_of(tokens, [["a", "b"], ["▁", "ab"]]) == [0, 0, 0, 0, 0, 0, -1, -2, 0, 0]
    assert has_prefix(own)
    with pytest.raises(UserError, match="9 tokens and the model 8 rows"):
        tokens_of(own, 8, "<unk>")
