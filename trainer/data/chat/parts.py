"""What is said as one text, where it stands in parts: [{"type": "text", "text": "..."}, ...], {"text": "..."}."""

from __future__ import annotations

from typing import Any

from ..fields import MEDIA, is_empty, printable
from ..readers import BadRow

TEXTS = ("text", "input_text", "output_text")


def joined(place: str, content: Any) -> tuple[Any, tuple[str, ...]]:
    """The text of parts, or the content as it is where it is none; and the fields of the parts that are not read.

    Raises:
        BadRow: a part is no text.
    """
    if isinstance(content, dict) and isinstance(content.get("parts"), list):  # Gemini's systemInstruction
        content = content["parts"]
    if isinstance(content, dict) and "text" in content:  # one part alone
        content = [content]
    if not isinstance(content, list) or not all(isinstance(part, (dict, str)) for part in content):
        return content, ()
    texts, unread = [], []
    for i, part in enumerate(content):
        part = part if isinstance(part, dict) else {"text": part}
        kind, text = part.get("type", TEXTS[0]), part.get("text")
        if kind not in TEXTS or not isinstance(text, str):
            named = part.get("type") or next(
                (name for name in part if name != "text"), kind
            )  # inlineData, functionCall
            raise BadRow(("data.part", {"field": f"{place}[{i}]", "kind": printable(str(named))}))
        more = [str(name) for name, value in part.items() if name not in ("type", "text") and not is_empty(value)]
        if media := [name for name in more if name in MEDIA]:
            raise BadRow(("data.media", {"field": f"{place}[{i}].{media[0]}"}))
        texts.append(text)
        unread += [printable(f"[].{name}") for name in more]
    return "".join(texts), tuple(unread)
