"""Text of any encoding, without what a terminal or a chat adds."""

from __future__ import annotations

import pytest
from lora_train.instrument.read.logs.text import clean, decode

TEXT = "학습 loss █ 1.5\n" * 20


@pytest.mark.parametrize("name", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_every_encoding_with_a_mark_and_utf_8_without(name):
    assert decode(TEXT.encode(name)) == TEXT


def test_encodings_without_a_mark():
    english = "{'loss': 1.5}\n" * 20
    for name in ("utf-16-le", "utf-16-be", "latin-1"):
        assert decode(english.encode(name)) == english
    assert decode("학습 손실 값\n".encode("cp949") * 3) == "학습 손실 값\n" * 3


def test_a_cut_character_does_not_change_the_encoding():
    assert decode(TEXT.encode()[1:-8]).count("█") == 19
    assert decode(b"") == ""


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("\x1b[1;32mloss\x1b[0m: 1.5\x1b[K", "loss: 1.5"),
        ("\x1b]0;title\x07loss", "loss"),
        ("[0;32mloss[0m", "loss"),
        ("a\rb\r\nc", "a\nb\n\nc"),
        ("{‘loss’: “1.5”}", "{'loss': \"1.5\"}"),
        ("1e−05\u00a0\u200bx", "1e-05 x"),
        ("{&#39;loss&#39;: 1.5}", "{'loss': 1.5}"),
        (r'{"log":"{\"loss\": 1.5}\n","stream":"stdout"}', '{"loss": 1.5}'),
        (r'{"message": "loss=1.5", "level": "INFO"}', "loss=1.5"),
        (r'{"log": 3}', '{"log": 3}'),
    ],
)
def test_what_is_taken_out(raw, cleaned):
    assert clean(raw) == cleaned
