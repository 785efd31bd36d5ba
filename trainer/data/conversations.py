"""Conversations: from a row's turns to text through a chat template, with the assistant's turns found in it.

What the assistant writes is trained on: in every one of its turns the content and what ends the turn
("<|im_end|>"), nothing else. Templates that mark it with {% generation %} are taken at their word. In the others
a turn is found by rendering the conversation up to it, with the header that asks for an answer, and past it:

    before = render(turns[:i], header)      "...<|im_start|>assistant\\n"
    after  = render(turns[:i + 1])          "...<|im_start|>assistant\\nHello<|im_end|>\\n"

which holds only if `before` begins `after` and `after` begins the whole conversation; where a template breaks that
(because it drops earlier reasoning, say) the row is refused rather than trained on the wrong tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError, first_line, problem
from .formats import CHATS, Fault, Rendered, is_unicode, printable, require_object, text_faults
from .sources import BadRow

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
# transformers' own pattern
GENERATION = re.compile(r"\{\%-?\s*generation\s*-?\%\}")
# Llama 3 prints today's date unless it is given one; the same rows must give the same tokens tomorrow.
FIXED_DATE = "26 Jul 2024"

Turn = dict[str, Any]


def read_template(value: str) -> str:
    """data.chat_template: Jinja as it is, or the file that holds it.

    Raises:
        UserError: the file cannot be read.
    """
    if is_jinja(value):
        return value
    try:
        return Path(value).expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(problem("data.unreadable", source=value, what=error.strerror or error)) from error
    except UnicodeDecodeError as error:
        raise UserError(problem("config.not_utf8", file=value, byte=error.start)) from None


def is_jinja(value: str) -> bool:
    """Whether data.chat_template is a template rather than the path of one."""
    return "{%" in value or "{{" in value


def find_template(chat_template: str | None, tokenizer: Any) -> str:
    """The user's template, else the tokenizer's.

    Raises:
        UserError: there is none, or it is not Jinja.
    """
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    if chat_template is None and not tokenizer.chat_template:
        raise UserError(problem("data.no_chat_template", name=tokenizer.name_or_path))
    try:
        template = read_template(chat_template) if chat_template is not None else tokenizer.get_chat_template()
        render_jinja_template(conversations=[], chat_template=template)  # compiles it
    except (TemplateError, ValueError) as error:
        name = "data.chat_template" if chat_template is not None else tokenizer.name_or_path
        raise UserError(problem("data.bad_chat_template", name=name, what=error)) from error
    return template


@dataclass(frozen=True)
class ChatFormat:
    """A chat template and the fields that hold the turns.

    Attributes:
        name: messages or sharegpt.
        template: Jinja.
        special_tokens: bos_token and the like, for the template.
    """

    name: str
    template: str
    special_tokens: dict[str, Any]

    def render(self, row: Any) -> Rendered:
        """The row's text.

        Raises:
            BadRow: the turns are unusable, or the template refuses them.
        """
        turns = turns_of(self.name, row)
        if GENERATION.search(self.template):
            text, spans = self._run(turns, mark=True)
        else:
            text, _ = self._run(turns)
            spans = [self._answer(turns, i, text) for i, turn in enumerate(turns) if turn["role"] == "assistant"]
        return Rendered(text, tuple((start, end) for start, end in spans if end > start))

    def _run(self, turns: Sequence[Turn], header: bool = False, mark: bool = False) -> tuple[str, list]:
        from transformers.utils.chat_template_utils import render_jinja_template

        values = {"date_string": FIXED_DATE, **self.special_tokens}
        try:
            (text,), spans = render_jinja_template(
                conversations=[list(turns)],
                chat_template=self.template,
                return_assistant_tokens_mask=mark,
                add_generation_prompt=header,
                **values,
            )
        except Exception as error:  # raise_exception(), an undefined name, or any type error inside the template
            what = printable(first_line(error))
            raise BadRow(("data.chat_refused", {"what": what})) from error
        if not is_unicode(text):
            raise BadRow(("data.not_unicode", {"field": CHATS[self.name][0]}))
        return text, list(spans[0]) if mark else []

    def _answer(self, turns: Sequence[Turn], i: int, text: str) -> tuple[int, int]:
        """Characters of the i-th turn that the assistant writes."""
        header = self._run(turns[:i], header=True)[0]
        after = self._run(turns[: i + 1])[0] if i + 1 < len(turns) else text
        if not (after.startswith(header) and text.startswith(after)):
            raise BadRow(("data.not_prefix", {"turn": i + 1}))
        written = after[len(header) :]
        for content in (turns[i]["content"], turns[i]["content"].strip()):
            if written.startswith(content) and "add_generation_prompt" in self.template:
                start, closing = len(header), written[len(content) :]
                break
        else:
            start, closing = self._around(turns, i, text, after, header)
        # white space behind the end-of-turn token opens the next turn; on its own it is what ends this one
        return start, len(after) - (len(closing) - len(closing.rstrip()) if closing.strip() else 0)

    def _around(self, turns: Sequence[Turn], i: int, text: str, after: str, header: str) -> tuple[int, str]:
        """Where the answer starts and what closes it, seen by putting a word that nobody says in its place."""
        word = "\ue000answer\ue001"
        while word in text:
            word = word[:-1] + "x\ue001"
        marked = self._run([*turns[:i], {**turns[i], "content": word}])[0]
        opening, found, closing = marked.partition(word)
        asks = header != (self._run(turns[:i])[0] if i else "")
        # a template without a header to ask with writes one into the answer's turn
        start = len(header) if asks else len(opening)
        if not found or not after.endswith(closing) or not (asks or after.startswith(opening)):
            raise BadRow(("data.not_prefix", {"turn": i + 1}))
        return start, closing


def turns_of(name: str, row: Any) -> list[Turn]:
    """The row's conversation as role and content.

    Raises:
        BadRow: a turn is missing, is not text, or nobody knows its role.
    """
    require_object(row)
    field, who, what = CHATS[name]
    if field not in row:
        raise BadRow(("data.no_field", {"field": field, "found": printable(", ".join(map(str, row)) or "-")}))
    turns = row[field]
    if not isinstance(turns, list):
        raise BadRow(("data.not_turns", {"field": field, "kind": type(turns).__name__}))
    if not turns:
        raise BadRow(("data.empty_field", {"field": field}))
    faults = [fault for i, turn in enumerate(turns) for fault in _turn_faults(f"{field}[{i}]", turn, name)]
    if faults:
        raise BadRow(*faults)
    if name == "sharegpt":
        return [{"role": ROLES[turn[who]], "content": turn[what]} for turn in turns]
    # parquet fills what a turn does not have with null, which templates take for a value
    return [{key: value for key, value in turn.items() if value is not None} for turn in turns]


def _turn_faults(place: str, turn: Any, name: str) -> list[Fault]:
    _, who, what = CHATS[name]
    if not isinstance(turn, dict):
        return [("data.not_turn", {"field": place, "kind": type(turn).__name__, "who": who, "what": what})]
    lacking = [field for field in (who, what) if field not in turn]
    if lacking:
        found = printable(", ".join(map(str, turn)) or "-")
        return [("data.no_field", {"field": f"{place}.{field}", "found": found}) for field in lacking]
    faults = text_faults(f"{place}.{who}", turn[who])
    if not faults and name == "sharegpt" and turn[who] not in ROLES:
        faults = [("data.unknown_role", {"field": f"{place}.{who}", "role": turn[who], "known": ", ".join(ROLES)})]
    is_answer = turn[who] in ("assistant", "gpt")
    return faults + text_faults(f"{place}.{what}", turn[what], may_be_empty=not is_answer)
