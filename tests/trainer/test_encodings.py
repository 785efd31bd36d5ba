"""What bytes are that should be UTF-8."""

from __future__ import annotations

import gzip

import pytest
from lora_train.trainer.encodings import is_half_empty, other_kind, probable, utf16_order

KOREAN = '{"질문": "대한민국의 수도는?", "답변": "서울"}'


@pytest.mark.parametrize("encoding", ["cp949", "utf-16le", "utf-16be"])
def test_the_encoding_of_korean_is_told(encoding):
    assert probable(KOREAN.encode(encoding)) == encoding


def test_the_order_of_halves_and_none_of_a_text_with_a_few_zeros():
    assert utf16_order("abc".encode("utf-16-le")) == "utf-16le"
    assert utf16_order("abc".encode("utf-16-be")) == "utf-16be"
    assert utf16_order(b"abc\0\0\0def") == utf16_order(b"") == utf16_order(b"abc") == ""
    assert not is_half_empty(b"\0\0\0\0")


def test_a_file_of_another_kind_and_a_text_that_begins_like_one():
    assert other_kind(gzip.compress(b"x")[:64]) == "gzip"
    assert other_kind(b"BZh91AY&SY\x00") == "bzip2"
    assert other_kind("BZh,질문\n".encode()) == other_kind(b"") == ""
