from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_train.trainer.config.schema import DataSection
from lora_train.trainer.data.examples import load_examples
from lora_train.trainer.data.formats import Rendered, koalpaca_prompt
from lora_train.trainer.data.masks import tokenize
from lora_train.trainer.errors import UserError
from tokenizers import ByteLevelBPETokenizer, Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.processors import ByteLevel, TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ...conftest import DATA

TEXT = st.text(alphabet=st.characters(codec="utf-8", exclude_characters="<"))


def trimming() -> PreTrainedTokenizerFast:
    """RoBERTa's way: offsets without the white space that belongs to the token."""
    bpe = ByteLevelBPETokenizer()
    bpe.train([str(DATA)], vocab_size=400, special_tokens=["</s>"], show_progress=False)
    bpe._tokenizer.post_processor = ByteLevel(trim_offsets=True)
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="</s>")


def sentencepiece() -> PreTrainedTokenizerFast:
    """Llama 2's way: a word begins with its space, unknown characters are bytes, <s> and </s> are added."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁a", "a", "b", "ab", "▁ab"]
    scores = [(piece, -float(index)) for index, piece in enumerate(pieces)]
    backend = Tokenizer(models.Unigram(scores, unk_id=0, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.add_special_tokens(["<s>", "</s>"])
    backend.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def characters() -> PreTrainedTokenizerFast:
    """A token a character, no end-of-text token."""
    backend = Tokenizer(models.WordLevel({chr(code): code for code in range(128)}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="?")


MADE = {"trimming": trimming, "sentencepiece": sentencepiece, "characters": characters}


@pytest.fixture(scope="module")
def tokenizers(tiny_models):
    made = {name: make() for name, make in MADE.items()}
    return {"byte_level": AutoTokenizer.from_pretrained(tiny_models["gpt_neox"]), **made}


def rendered(prompt: str, answer: str) -> Rendered:
    return Rendered(prompt + answer, ((len(prompt), len(prompt) + len(answer)),))


def test_a_token_across_the_border_is_trained_on(tokenizers):
    tokenizer = tokenizers["byte_level"]
    prompt, answer = "서울입", "니다 네"
    ((ids, supervised),) = tokenize([rendered(prompt, answer)], tokenizer)
    spans = tokenizer(prompt + answer, return_offsets_mapping=True).offset_mapping
    (across,) = [index for index, (start, end) in enumerate(spans) if start < len(prompt) < end]
    assert tokenizer.decode(ids[across]) == "입니다"
    assert supervised.tolist() == [False] * across + [True] * (len(ids) - across)


def test_a_token_that_begins_in_a_span_and_ends_behind_it_is_trained_on(tokenizers):
    ((ids, supervised),) = tokenize([Rendered("네 입니다", ((2, 3),))], tokenizers["byte_level"], is_chat=True)
    assert tokenizers["byte_level"].decode(ids[supervised]).strip() == "입니다"


def test_white_space_tokens_are_trained_on_where_offsets_are_trimmed(tokenizers):
    tokenizer = tokenizers["trimming"]
    ((ids, supervised),) = tokenize([rendered("가:", "나 \n \n 다")], tokenizer)
    places = tokenizer("가:나 \n \n 다", return_offsets_mapping=True).offset_mapping
    assert any(start == end for start, end in places)
    assert tokenizer.decode(ids[supervised]) == "나 \n \n 다</s>"


def test_special_tokens_that_the_tokenizer_adds(tokenizers):
    ((ids, supervised),) = tokenize([rendered("ab", " ab")], tokenizers["sentencepiece"])
    assert tokenizers["sentencepiece"].convert_ids_to_tokens(ids) == ["<s>", "▁ab", "▁ab", "</s>"]
    assert supervised.tolist() == [False, False, True, True]
    ((ids, supervised),) = tokenize([rendered("ab", " ab")], tokenizers["sentencepiece"], train_on_inputs=True)
    assert supervised.tolist() == [False, True, True, True]
    ((ids, supervised),) = tokenize([rendered("<s>ab", " ab</s>")], tokenizers["sentencepiece"], is_chat=True)
    assert tokenizers["sentencepiece"].convert_ids_to_tokens(ids)[::3] == ["<s>", "</s>"]
    assert supervised.tolist()[-2:] == [True, True]
    ((ids, supervised),) = tokenize([rendered("ab", "c")], tokenizers["characters"])
    assert (ids.tolist(), supervised.tolist()) == ([97, 98, 99], [False, False, True])
    ((ids, supervised),) = tokenize([rendered("", "")], tokenizers["characters"])
    assert (len(ids), ids.dtype, len(supervised)) == (0, np.int32, 0)


@settings(max_examples=150)
@given(prompt=TEXT, answer=TEXT.filter(str.strip), name=st.sampled_from(["byte_level", *MADE]))
def test_supervised_tokens_are_those_whose_characters_reach_into_the_answer(tokenizers, prompt, answer, name):
    """Against the offsets, one by one; and what is masked never holds a character of the answer."""
    tokenizer, row = tokenizers[name], rendered(prompt, answer)
    ((ids, supervised),) = tokenize([row], tokenizer)
    encoding = tokenizer(row.text, return_offsets_mapping=True).encodings[0]
    covered = set()
    for index, ((start, end), added) in enumerate(zip(encoding.offsets, encoding.special_tokens_mask, strict=True)):
        if start == end or added:
            continue
        assert bool(supervised[index]) is (end > len(prompt) and index > 0)
        covered |= set(range(start, end)) if supervised[index] or index == 0 else set()
    if name != "trimming":
        assert covered >= set(range(len(prompt), len(row.text)))
    if tokenizer.eos_token_id is not None:
        assert (ids[-1], supervised[-1]) == (tokenizer.eos_token_id, True)


@settings(max_examples=150)
@given(instruction=TEXT, output=TEXT)
def test_koalpaca_trains_on_exactly_the_answer_or_says_what_is_wrong(tokenizers, tmp_path_factory, instruction, output):
    tokenizer = tokenizers["byte_level"]
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_text(json.dumps({"instruction": instruction, "output": output}), encoding="utf-8")
    section = DataSection(train=str(path), cutoff_len=10**6, cache=False)
    if not instruction.strip() or not output.strip():
        with pytest.raises(UserError, match=r"any.jsonl line 1: (instruction|output) is empty"):
            load_examples(str(path), section, tokenizer)
        return
    (example,) = load_examples(str(path), section, tokenizer).examples
    prompt, answer = koalpaca_prompt({"instruction": instruction, "output": output})
    text = tokenizer.decode(example.input_ids[example.supervised])
    assert tokenizer.decode(example.input_ids) == prompt + answer + "<|endoftext|>"
    # ":" ends the prompt and may share a token with nothing before it: at most a few characters straddle
    assert text.endswith(answer + "<|endoftext|>")
    assert tokenizer.decode(example.input_ids[~example.supervised]) + text == prompt + answer + "<|endoftext|>"
    assert len(text) - len(answer + "<|endoftext|>") <= 3
