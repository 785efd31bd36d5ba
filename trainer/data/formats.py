"""From a row to the text the model sees and the characters of it that are trained on.

    koalpaca             ### 질문: {instruction}\\n\\n### 답변: {output}<end of text>
    alpaca               Stanford Alpaca's prompt, with or without its input
    prompt_completion    {prompt}{completion}<end of text>
    text                 {text}<end of text>, all of it trained on
    prompt_template      the user's own; trained on from its last field on, whatever follows included
    messages, sharegpt   the tokenizer's chat template, see conversations.py

The space before koalpaca's answer belongs to the answer, because that is where byte-pair tokenizers put it.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import kind_of_value
from .fields import Fault, Note, has_no_place, not_used, printable, require_supported
from .readers import BadRow

DETECTION_ROWS = 100


@dataclass(frozen=True)
class Rendered:
    """One row as text.

    Attributes:
        text: what is tokenized.
        spans: (start, end) in characters of what is trained on, in order.
        earlier: answers of the same row that the template writes otherwise once others follow, each with what comes
            before it.
        notes: what is to be said about the row.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    earlier: tuple[Rendered, ...] = ()
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True)
class Format:
    """A template and the fields it reads.

    Attributes:
        template: fields -> (prompt, answer).
        required: fields that must hold text.
        optional: fields that may be empty, null or absent.
        may_be_empty: fields that must be there but may be empty or null.
        own: the user's template, which says itself what of a row is wanted.
    """

    template: Callable[[Mapping[str, str]], tuple[str, str]]
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    may_be_empty: tuple[str, ...] = ()
    own: bool = False

    def render(self, row: Any) -> Rendered:
        """The row's text.

        Raises:
            BadRow: fields are missing or unusable, or hold what this format has no place for.
        """
        fields = self._fields(row)
        require_supported(row, fields, answers=len(fields) > 1)
        if not self.own and (faults := has_no_place(row, fields)):
            raise BadRow(*faults)
        prompt, answer = self.template(fields)
        span = (len(prompt), len(prompt) + len(answer))
        return Rendered(prompt + answer, (span,), notes=not_used(row, fields))

    def _fields(self, row: Any) -> dict[str, str]:
        require_object(row)
        faults, fields = [], {}
        for field in (*self.required, *self.may_be_empty, *self.optional):
            if field not in row and field not in self.optional:
                faults.append(missing(row, field))
                continue
            value = row.get(field)
            if value is None and field not in self.required:
                value = ""
            faults += text_faults(field, value, may_be_empty=field not in self.required)
            fields[field] = value
        if faults:
            raise BadRow(*faults)
        return fields


def require_object(row: Any) -> None:
    """Raises BadRow unless the row is an object with fields."""
    if isinstance(row, BadRow):
        raise row
    if not isinstance(row, dict):
        raise BadRow(("data.not_object", {"kind": kind_of_value(row)}))


def missing(row: Mapping[str, Any], field: str) -> Fault:
    """The fault of a field that is not there, with those that are."""
    return "data.no_field", {"field": field, "found": printable(", ".join(map(str, row)) or "-")}


def text_faults(field: str, value: Any, may_be_empty: bool = False) -> list[Fault]:
    """What is wrong with a value that must be text: nothing, or one thing."""
    if not isinstance(value, str):
        return [("data.not_text", {"field": printable(field), "kind": kind_of_value(value)})]
    if not may_be_empty and not value.strip():
        return [("data.empty_field", {"field": printable(field)})]
    return [] if is_unicode(value) else [("data.not_unicode", {"field": printable(field)})]


def is_unicode(text: str) -> bool:
    """False where the text holds half a character (a lone surrogate), which JSON can smuggle in."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def koalpaca_prompt(row: Mapping[str, str]) -> tuple[str, str]:
    """KoAlpaca's template as (prompt, answer)."""
    return f"### 질문: {row['instruction']}\n\n### 답변:", f" {row['output']}"


def alpaca_prompt(row: Mapping[str, str]) -> tuple[str, str]:
    """Stanford Alpaca's template as (prompt, answer)."""
    if row.get("input"):
        opening = (
            "Below is an instruction that describes a task, paired with an input that provides further context. "
            "Write a response that appropriately completes the request.\n\n"
        )
        body = f"### Instruction:\n{row['instruction']}\n\n### Input:\n{row['input']}"
    else:
        opening = (
            "Below is an instruction that describes a task. "
            "Write a response that appropriately completes the request.\n\n"
        )
        body = f"### Instruction:\n{row['instruction']}"
    return f"{opening}{body}\n\n### Response:\n", row["output"]


FORMATS = {
    "koalpaca": Format(koalpaca_prompt, ("instruction", "output")),
    "alpaca": Format(alpaca_prompt, ("instruction", "output"), ("input",)),
    "prompt_completion": Format(lambda row: (row["prompt"], row["completion"]), ("prompt", "completion")),
    "text": Format(lambda row: ("", row["text"]), ("text",)),
}
# Chat format -> (field with the turns, a turn's field for who speaks, for what is said).
CHATS = {"messages": ("messages", "role", "content"), "sharegpt": ("conversations", "from", "value")}


def template_fields(template: str) -> list[str]:
    """The fields of a prompt template in order, the answer last.

    Raises:
        ValueError: braces do not match, or a field is not a plain name.
    """
    fields = []
    for _, field, spec, conversion in string.Formatter().parse(template):
        if field is None:
            continue
        if not field.strip() or spec or conversion or any(sign in field for sign in ".[]{"):
            raise ValueError(
                "{" + field + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "") + "}"
            )
        fields.append(field)
    return fields


def custom_format(template: str) -> Format:
    """The format of data.prompt_template, which template_fields() accepts.

    The answer, the last field, must hold text; the others may be empty.
    """
    parts = [(literal, field) for literal, field, _, _ in string.Formatter().parse(template)]
    last = max(index for index, (_, field) in enumerate(parts) if field is not None)
    answer = str(parts[last][1])

    def fill(row: Mapping[str, str]) -> tuple[str, str]:
        texts = [literal + (row[field] if field is not None else "") for literal, field in parts[:last]]
        ending = "".join(literal for literal, _ in parts[last + 1 :])
        return "".join(texts) + parts[last][0], row[answer] + ending

    others = dict.fromkeys(field for _, field in parts[:last] if field not in (None, answer))
    return Format(fill, (answer,), may_be_empty=tuple(others), own=True)


def _is_list_of_turns(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(turn, dict) for turn in value)


def detect(rows: Sequence[Any]) -> str | None:
    """The format whose fields most of the first rows have; None if no row has any format's.

    instruction and output are koalpaca, with an input in any row alpaca; where one of them holds turns, messages.
    """
    rows = [row for row in rows[:DETECTION_ROWS] if isinstance(row, dict)]
    needed = {name: (field,) for name, (field, *_) in CHATS.items()}
    needed |= {name: form.required for name, form in FORMATS.items()}
    held = [{field for field, value in row.items() if value is not None} or set(row) for row in rows]
    fits = {name: sum(own.issuperset(fields) for own in held) for name, fields in needed.items()}
    best = max(fits, key=lambda name: fits[name])
    if fits[best] == 0:
        return None
    if best in ("prompt_completion", "koalpaca") and any(
        _is_list_of_turns(row.get(key)) for row in rows for key in FORMATS[best].required
    ):
        return "messages"
    if best == "koalpaca" and any("input" in row for row in rows):
        return "alpaca"
    return best
