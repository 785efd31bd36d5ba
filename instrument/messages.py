"""Every sentence a user sees, in Korean and in English.

The sentences live in catalogue/en.json and catalogue/ko.json under the same keys; placeholders are
str.format fields. The language is LORA_TRAIN_LANG, else that of the locale. Nothing here imports torch.
"""

from __future__ import annotations

import functools
import json
import os
import re
import string
from pathlib import Path
from typing import Any

LANGUAGES = ("en", "ko")
LARGEST_PLAIN = 1e6
VARIABLE = "LORA_TRAIN_LANG"
_CATALOGUE = Path(__file__).with_name("catalogue")


def language() -> str:
    """The language of this process: "ko" or "en"."""
    for variable in (VARIABLE, "LC_ALL", "LC_MESSAGES", "LANG"):
        value = os.environ.get(variable, "")
        if value:
            return "ko" if value.lower().startswith("ko") else "en"
    return "en"


@functools.cache
def catalogue(lang: str) -> dict[str, str]:
    """All sentences of one language, by key."""
    return json.loads((_CATALOGUE / f"{lang}.json").read_text(encoding="utf-8"))


def say(key: str, /, **values: Any) -> str:
    """The sentence `key` in the user's language with its placeholders filled.

    Raises:
        KeyError: the catalogue has no such key, or a placeholder has no value (a programmer's error).
    """
    return say_in(language(), key, **values)


def say_in(lang: str, key: str, /, **values: Any) -> str:
    """The sentence `key` in a language of LANGUAGES."""
    sentence = catalogue(lang)[key]
    text = sentence.format(**values)
    return _PLAIN.format(sentence, **values) if "e+0" in text else text


_GENERAL = re.compile(r"\+?(\.\d+)?g")


class _Plain(string.Formatter):
    """Numbers below LARGEST_PLAIN as people write them: 130, not 1.3e+02."""

    def format_field(self, value: Any, format_spec: str) -> str:
        text = super().format_field(value, format_spec)
        if "e+" not in text or not _GENERAL.fullmatch(format_spec) or abs(value) >= LARGEST_PLAIN:
            return text
        return f"{float(text):{'+' if text.startswith('+') else ''},.0f}"


_PLAIN = _Plain()
