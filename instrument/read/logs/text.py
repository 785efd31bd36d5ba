"""The text of a log, whatever encoding it was saved in and whatever a terminal, a browser or a chat added to it."""

from __future__ import annotations

import codecs
import html
import json
import re

BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# Text in UTF-16 that is mostly ASCII has a zero in nearly every second byte.
ZEROS = 0.3
LOOKED_AT = 4096
_ANSI = re.compile(r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b\[[0-?]*[ -/]*[@-~]|\x1b[@-_]|\[\d{1,3}(?:;\d{1,3})*m")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f\u200b-\u200f\u2060\ufeff]")
_AS = str.maketrans(
    {
        **dict.fromkeys("‘’‚‛′`", "'"),
        **dict.fromkeys("“”„‟″", '"'),
        **dict.fromkeys("\u00a0\u2002\u2003\u2007\u2009\u202f\u3000", " "),
        **dict.fromkeys("−–‐‑", "-"),
        **dict.fromkeys("\r\x0b\x0c\u0085\u2028\u2029", "\n"),
    }
)
# Where a log shipper keeps the line itself.
_SHIPPED = ("log", "message", "msg", "textPayload")


def decode(data: bytes) -> str:
    """The text of a file: by its byte order mark, UTF-16 without one, UTF-8, else Korean Windows (cp949)."""
    for mark, name in BOMS:
        if data.startswith(mark):
            return data[len(mark) :].decode(name, errors="replace")
    head = data[:LOOKED_AT]
    for at, name in ((1, "utf-16-le"), (0, "utf-16-be")):
        if head and head[at::2].count(0) > ZEROS * len(head) / 2 and head[1 - at :: 2].count(0) < len(head) // 16 + 1:
            return data.decode(name, errors="replace")
    text = data.decode("utf-8", errors="replace")
    lost = text.count("\ufffd")
    if lost > 1 and lost > sum(character > "\x7f" for character in text) / 10:
        try:
            return data.decode("cp949")
        except UnicodeDecodeError:
            return text
    return text


def clean(text: str) -> str:
    """The text without colours and control characters, quotes straight, one line end, entities resolved."""
    if "&quot;" in text or "&#39;" in text or "&#x27;" in text:
        text = html.unescape(text)
    text = _ANSI.sub("", text).translate(_AS)
    return _CONTROL.sub("", _unshipped(text))


def _unshipped(text: str) -> str:
    """Lines of docker's and the clouds' JSON, each the line it carries."""
    if not any(f'"{name}"' in text for name in _SHIPPED):
        return text
    return "\n".join(_carried(line) for line in text.split("\n"))


def _carried(line: str) -> str:
    if not line.lstrip().startswith("{"):
        return line
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return line
    if not isinstance(values, dict):
        return line
    carried = [values[name] for name in _SHIPPED if isinstance(values.get(name), str)]
    return carried[0].translate(_AS).rstrip("\n") if carried else line
