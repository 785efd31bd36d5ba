"""Rows to be answered: the answer may be missing, and the format is still that of the rows a run was trained on.

    {"instruction": "..."}                       as koalpaca or alpaca, whose answer is `output`
    {"prompt": "..."}                            as prompt_completion
    {"messages": [..., {"role": "user", ...}]}   a conversation that ends with a question
    the fields of a prompt_template but the last

A missing answer is replaced by PLACEHOLDER, which nobody sees: what stands before it is what a model is asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ...config.schema import DataSection
from ...data.fields import renamed
from ...data.formats import CHATS, template_fields
from ...data.sources import Source, Where, open_source

PLACEHOLDER = "."
ANSWERS = {"instruction": "output", "prompt": "completion", "question": "answer", "query": "response", "질문": "답변"}
"""The field that asks -> the field that answers."""
SPEAKERS = {"messages": "assistant", "sharegpt": "gpt"}


@dataclass(frozen=True)
class Questions(Source):
    """A source whose rows may lack their answer."""

    data: DataSection | None = None

    def rows(self) -> Iterator[tuple[Where, Any]]:
        assert self.data is not None
        for where, row in super().rows():
            yield where, asked(row, self.data)


def questions(value: str | Sequence[str], data: DataSection) -> Questions:
    """What `open_source` opens, with answers where they are missing.

    Args:
        data: of the run: its format, template and columns.
    """
    found = open_source(value)
    return Questions(found.name, found.files, found.table, found.names, data)


def question_settings(data: DataSection) -> DataSection:
    """The settings under which a row's first token that is trained on is the first of its answer."""
    return data.model_copy(update={"train_on_inputs": False, "packing": False, "cache": False, "on_bad_row": "error"})


def asked(row: Any, data: DataSection) -> Any:
    """The row with an answer; as it is where it has one, or asks nothing that is known here."""
    if not isinstance(row, dict):
        return row
    theirs = {ours: name for ours, name in data.columns.items() if name and ours not in ("role", "content")}
    known = renamed(row, {ours: name for ours, name in theirs.items() if name in row})
    if data.prompt_template is not None:
        field = template_fields(data.prompt_template)[-1]
        return row if known.get(field) else {**row, theirs.get(field, field): PLACEHOLDER}
    for name, (turns, role, content) in CHATS.items():
        talk = known.get(turns)
        if isinstance(talk, list) and talk and isinstance(talk[-1], dict):
            keys = data.columns.get("role") or role, data.columns.get("content") or content
            last = {keys[0]: SPEAKERS[name], keys[1]: PLACEHOLDER}
            spoken = str(talk[-1].get(keys[0]))
            asks = spoken in ("user", "human", "tool", "system", "observation", "function_response")
            return {**row, theirs.get(turns, turns): [*talk, last]} if asks else row
    for question, answer in ANSWERS.items():
        if isinstance(known.get(question), str) and not known.get(answer):
            return {**row, theirs.get(answer, answer): PLACEHOLDER}
    return row
