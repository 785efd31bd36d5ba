"""A small GGUF file is converted once; a damaged one and a cache without room are said, and leave nothing."""

from __future__ import annotations

import os
import time
from pathlib import Path
from random import Random

import numpy as np
import pytest
from lora_train.trainer.errors import UserError
from lora_train.trainer.model import gguf
from lora_train.trainer.model.gguf import ABANDONED, converted_gguf
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from ...fuzz.damage import damaged

WIDTH, INNER = 32, 48


def write_llama(path: Path) -> Path:
    """A LLaMA of one layer with a byte-level tokenizer, float32."""
    from gguf import GGUFWriter

    writer, numbers = GGUFWriter(path, "llama"), np.random.RandomState(0)
    tokens = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab"]
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(16)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * (len(tokens) - 1))
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(0)
    shapes = {"token_embd": (len(tokens), WIDTH), "output": (len(tokens), WIDTH), "output_norm": (WIDTH,)}
    shapes |= {f"blk.0.attn_{name}": (WIDTH, WIDTH) for name in ("q", "k", "v", "output")}
    shapes |= {"blk.0.ffn_gate": (INNER, WIDTH), "blk.0.ffn_up": (INNER, WIDTH), "blk.0.ffn_down": (WIDTH, INNER)}
    for name, shape in {**shapes, "blk.0.attn_norm": (WIDTH,), "blk.0.ffn_norm": (WIDTH,)}.items():
        writer.add_tensor(f"{name}.weight", numbers.randn(*shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "lora-train" / "gguf"


def test_it_is_converted_once_and_found_again(cache, tmp_path, monkeypatch):
    path = write_llama(tmp_path / "tiny.gguf")
    folder = converted_gguf(path)
    assert [own.name for own in cache.iterdir()] == [folder.name]
    assert AutoTokenizer.from_pretrained(folder)("ab")["input_ids"] == [257]
    model = AutoModelForCausalLM.from_pretrained(folder)
    norm = np.random.RandomState(0).randn(258, WIDTH).astype(np.float32)
    assert np.array_equal(model.model.embed_tokens.weight.detach().numpy(), norm)
    monkeypatch.setattr(gguf, "_convert", None)
    assert converted_gguf(path) == folder


@pytest.mark.parametrize("place", ["file", "full"])
def test_a_cache_without_room_is_said_and_nothing_is_left(cache, tmp_path, monkeypatch, place):
    path = write_llama(tmp_path / "tiny.gguf")
    if place == "file":
        cache.parent.parent.mkdir()
        cache.parent.write_text("")
    else:

        def full(*_: object) -> None:
            raise OSError(28, os.strerror(28))

        monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(UserError, match=r"could not be kept in .*: (Not a directory|No space left)"):
        converted_gguf(path)
    assert not cache.is_dir() or list(cache.iterdir()) == []


def test_what_a_kill_left_goes_a_day_later(cache, tmp_path):
    old, new = cache / "x-1.7.tmp", cache / "x-2.8.tmp"
    for folder in (old, new):
        folder.mkdir(parents=True)
    begun = time.time() - ABANDONED - 1
    os.utime(old, (begun, begun))
    folder = converted_gguf(write_llama(tmp_path / "tiny.gguf"))
    assert sorted(cache.iterdir()) == sorted([new, folder])


def test_damage_ends_in_words(cache, tmp_path):
    path = write_llama(tmp_path / "tiny.gguf")
    sound, said = path.read_bytes(), []
    for number in range(20):
        path.write_bytes(damaged(sound, Random(number)))
        try:
            converted_gguf(path)
        except UserError as error:
            said.append(str(error))
    assert len(said) >= 5
    assert [text for text in said if "is damaged, or not a GGUF file" not in text] == []
    assert not list(cache.glob("*.tmp"))
