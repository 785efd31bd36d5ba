"""The repository that a .gguf file names as its source, from the first bytes of the file.

gguf's own reader walks the whole vocabulary, 6 s for 49,152 tokens; what is wanted stands before it:

    "GGUF", u32 version, u64 tensors, u64 n, then n times: text key, u32 type, value      text: u64 length, UTF-8
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import BinaryIO

# Keys that name where a file came from, the nearest source first.
SOURCES = (
    "general.source.huggingface.repository",
    "general.source.repo_url",
    "general.source.url",
    "general.repo_url",
    "general.base_model.0.repo_url",
)
MAX_TEXT = 1 << 16  # bytes of a key or value that is worth reading
_TEXT, _ARRAY = 8, 9
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_URL = re.compile(r"^https?://(www\.)?(huggingface\.co|hf\.co)/|/(tree|resolve|blob)/.*$")


def gguf_repository(path: Path) -> str | None:
    """The hub id of the model that a GGUF file was made from; None where it names none."""
    try:
        with path.open("rb") as file:
            found = _texts(file)
    except (OSError, ValueError, struct.error, KeyError):
        return None
    ids = (_URL.sub("", found[key]).strip("/") for key in SOURCES if key in found)
    return next((name for name in ids if re.fullmatch(r"[\w.\-]+/[\w.\-]+", name)), None)


def _texts(file: BinaryIO) -> dict[str, str]:
    """Every text among the keys that begin with general; they stand before the vocabulary."""
    if file.read(4) != b"GGUF":
        raise ValueError("not a GGUF file")
    _, _, n = struct.unpack("<IQQ", file.read(20))
    found: dict[str, str] = {}
    for _ in range(n):
        key, kind = _text(file), _number(file, "<I")
        if key.startswith("tokenizer."):
            break
        if kind == _TEXT:
            found[key] = _text(file)
        elif kind == _ARRAY:
            item, length = _number(file, "<I"), _number(file, "<Q")
            for _ in range(length if item == _TEXT else 0):
                _text(file)
            if item != _TEXT:
                file.seek(_SIZES[item] * length, 1)
        else:
            file.seek(_SIZES[kind], 1)
    return found


def _text(file: BinaryIO) -> str:
    length = _number(file, "<Q")
    if length > MAX_TEXT:
        raise ValueError(f"a text of {length} bytes")
    return file.read(length).decode()


def _number(file: BinaryIO, form: str) -> int:
    return struct.unpack(form, file.read(struct.calcsize(form)))[0]
