from __future__ import annotations

import pytest
from lora_train.trainer.data.chat.parts import joined
from lora_train.trainer.data.readers import BadRow


@pytest.mark.parametrize("content", ["물은?", None, 5, [1], {"r": 1}])
def test_what_is_in_no_parts_stays_as_it_is(content):
    assert joined("HERE", content) == (content, ())


def test_parts_are_one_text_and_what_else_they_hold_is_named():
    parts = ["물", {"type": "text", "text": "은?", "cache_control": {"type": "ephemeral"}, "image": None}]
    assert joined("HERE", parts) == ("물은?", ("[].cache_control",))


@pytest.mark.parametrize("part", [{"type": "audio"}, {"type": "text"}, {"type": "text", "text": 5}])
def test_what_is_no_text_is_refused(part):
    with pytest.raises(BadRow):
        joined("HERE", [part])
