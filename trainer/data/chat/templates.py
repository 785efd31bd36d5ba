"""Chat templates as programs: where they come from, how they are run, and in which form they take a conversation.

Templates differ in what they take: content as text or as parts, a call's arguments as an object or as JSON, a system
prompt or none, a `developer` or not. The forms are tried in that order with a conversation of the same make whose
contents are words that nobody says; the first in which none of them is lost is taken for all conversations of that
make. Nothing but transformers' own sandboxed Jinja runs a template.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from ...config.names import at_home
from ...errors import UserError, first_line, problem
from ..fields import Fault, Note, printable
from ..formats import CHATS, is_unicode
from ..readers import BadRow
from .asked import fields_of_turns
from .turns import REASONING, ROLES, Talk, Turn

# Llama 3 prints today's date unless it is given one; the same rows must give the same tokens tomorrow.
FIXED_DATE = "26 Jul 2024"
WORD = "\ue000{}\ue001"
ARGUMENTS = "arguments"
# Fields of a turn that are sought in what a template writes, and numbers that hold nothing to learn; of others only
# whether the template knows them.
READ = frozenset({"role", "content", "tool_calls", *REASONING, "id", "tool_call_id"})
Signature = tuple[Any, ...]


def read_template(value: str) -> str:
    """data.chat_template: Jinja as it is, or the file that holds it.

    Raises:
        UserError: the file cannot be read.
    """
    if is_jinja(value):
        return value
    try:
        return at_home(value).read_text(encoding="utf-8")
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
class Runner:
    """Runs one chat template.

    Attributes:
        name: messages or sharegpt, for messages.
        template: Jinja.
        special_tokens: bos_token and the like, for the template.
    """

    name: str
    template: str
    special_tokens: Mapping[str, Any]
    _forms: dict[Signature, Sequence[str]] = field(default_factory=dict, compare=False, repr=False)

    def run(self, talk: Talk, header: bool = False, mark: bool = False, **values: Any) -> tuple[str, list]:
        """The conversation as text, and what of it {% generation %} marks.

        Args:
            talk: the conversation, in the form that the template takes.
            header: end with what asks for an answer.
            mark: ask for the marks.
            values: more that the template reads.

        Raises:
            BadRow: the template refuses it.
        """
        from transformers.utils.chat_template_utils import render_jinja_template

        more: dict[str, Any] = {"date_string": FIXED_DATE, **self.special_tokens, **talk.values, **values}
        try:
            (text,), spans = render_jinja_template(
                conversations=[list(talk.turns)],
                tools=list(talk.tools) or None,  # pyright: ignore[reportArgumentType] # any mapping will do
                chat_template=self.template,
                return_assistant_tokens_mask=mark,
                add_generation_prompt=header,
                **more,
            )
        except Exception as error:  # raise_exception(), an undefined name, or any type error inside the template
            what = printable(first_line(error))
            raise BadRow(("data.chat_refused", {"what": what, "field": CHATS[self.name][0]})) from error
        if not is_unicode(text):
            raise BadRow(("data.not_unicode", {"field": CHATS[self.name][0]}))
        return text, list(spans[0]) if mark else []

    @cached_property
    def always_asks(self) -> bool:
        """Whether a template that takes no heed of add_generation_prompt asks for an answer behind an answer too."""
        if "add_generation_prompt" in self.template:
            return False
        said, more = WORD.format("said"), WORD.format("more")
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": said}]
        try:
            behind = self.run(Talk(tuple(turns), (), ()))[0].partition(said)[2]
            later = self.run(Talk((*turns, {"role": "user", "content": more}), (), ()))[0].partition(said)[2]
        except BadRow:
            return False
        return "<" in behind and not later.startswith(behind.rstrip())

    def fitted(self, talk: Talk) -> Talk:
        """The conversation in the form that the template takes, with a note where a part of it changes its place.

        Raises:
            BadRow: the template refuses it in every form, or leaves a part of it out.
        """
        signature = _signature(talk)
        if signature not in self._forms:
            self._forms[signature] = self._form_of(talk)
        notes = dict.fromkeys((*talk.notes, *self._unread(talk)))
        return in_form(replace(talk, notes=tuple(notes)), self._forms[signature])

    def _unread(self, talk: Talk) -> Iterator[Note]:
        """Fields of the turns that the template does not know, such as a speaker's name or a file."""
        for place, turn in zip(talk.places, talk.turns, strict=True):
            for name in turn:
                if name not in READ and name not in self._fields:
                    yield "data.not_used", (("field", printable(f"{place.partition('[')[0]}[].{name}")),)

    @cached_property
    def _fields(self) -> frozenset[str]:
        """What the template asks of a turn, as message.name, message["name"] or message.get("name")."""
        return fields_of_turns(self.template)

    def _form_of(self, talk: Talk) -> Sequence[str]:
        fault: BadRow | None = None
        for form in _forms(talk, self.template):
            probe, words = _probe(talk)
            try:
                text, _ = self.run(in_form(probe, form))
            except BadRow as refused:
                try:  # words that nobody says may not be what a template takes, JSON for example
                    text, _ = self.run(in_form(talk, form))
                except BadRow:
                    fault = fault or self._refused(talk, refused)
                    continue
                words = {place: word for place, word in _contents(talk).items() if word}
            lost = [place for place, word in words.items() if word not in text and not _is_tool(place, form)]
            if lost and all(place.endswith(f"].{ARGUMENTS}") for place in lost):
                form, lost = (*form, "unargued"), []
            if not lost:
                return form
            fault = fault if fault and "data.chat_refused" not in str(fault) else _lost(lost, talk)
        assert fault is not None
        raise fault

    def _refused(self, talk: Talk, refused: BadRow) -> BadRow:
        """The refusal, with the first turn that the template does not take."""
        ((key, values),) = refused.faults
        for n, place in enumerate(talk.places, start=1):
            try:
                self.run(replace(talk, turns=talk.turns[:n]))
            except BadRow as bad:
                return BadRow((key, {**bad.faults[0][1], "field": place}))
        return BadRow((key, values))


def in_form(talk: Talk, form: Sequence[str]) -> Talk:
    """The conversation with these changes: system, merged, arguments, parts, untooled."""
    turns, notes, tools = [dict(turn) for turn in talk.turns], [*talk.notes], talk.tools
    places, answers = talk.places, talk.answers
    if "system" in form:
        turns = [turn | {"role": "system"} if turn["role"] == "developer" else turn for turn in turns]
        notes.append(("data.developer_is_system", ()))
    if "merged" in form:
        system, user, *rest = turns
        turns = [user | {"content": f"{system['content']}\n\n{user['content']}"}, *rest]
        places, answers = places[1:], tuple(index - 1 for index in answers)
        notes.append(("data.system_in_user", ()))
    if "arguments" in form:
        turns = [_with_arguments_as_text(turn) for turn in turns]
    if "parts" in form:
        turns = [turn | {"content": [{"type": "text", "text": turn["content"]}]} for turn in turns]
    if "untooled" in form:
        tools = ()
        notes.append(("data.tools_not_written", (("field", "tools"),)))
    if "unargued" in form:
        notes.append(("data.arguments_not_written", ()))
    return replace(talk, turns=tuple(turns), places=places, answers=answers, tools=tools, notes=tuple(notes))


def text_of(turn: Turn) -> str:
    """What is said in a turn, whatever its form."""
    content = turn.get("content") or ""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def with_text(turn: Turn, text: str) -> Turn:
    """The turn with another text, in the same form."""
    content = text if not isinstance(turn.get("content"), list) else [{"type": "text", "text": text}]
    return turn | {"content": content}


def _with_arguments_as_text(turn: Turn) -> Turn:
    if not turn.get("tool_calls"):
        return turn
    calls = []
    for call in turn["tool_calls"]:
        arguments = call["function"]["arguments"]
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        calls.append(call | {"function": call["function"] | {"arguments": text}})
    return turn | {"tool_calls": calls}


def _forms(talk: Talk, template: str) -> list[tuple[str, ...]]:
    """The forms to try, the conversation as it is first."""
    roles = [turn["role"] for turn in talk.turns]
    first: tuple[str, ...] = ()
    if "developer" in roles and not re.search(r"""["']developer["']""", template):
        first = ("system",)
    calls = any(turn.get("tool_calls") for turn in talk.turns)
    extras: list[tuple[str, ...]] = [(), ("parts",)]
    if calls:
        extras += [("arguments",)]
    if roles[0] in ("system", "developer") and roles[1:2] == ["user"]:
        extras += [("merged",), ("merged", "parts")]
        extras += [("merged", "arguments")] if calls else []
    forms = [(*first, *form) for form in extras]
    if "developer" in roles and not first:
        forms += [("system", *form) for form in extras]
    return forms + [(*form, "untooled") for form in forms] if talk.tools else forms


def _signature(talk: Talk) -> Signature:
    """What decides which form a template takes: who speaks, and which parts each turn has."""
    turns = tuple(
        (turn["role"], bool(turn["content"]), bool(turn.get("tool_calls")), any(name in turn for name in REASONING))
        for turn in talk.turns
    )
    return turns, bool(talk.tools), tuple(sorted(talk.values))


def _probe(talk: Talk) -> tuple[Talk, dict[str, str]]:
    """The same conversation of words that nobody says, and which of them stands where."""
    turns, words = [], {}
    for index, (place, turn) in enumerate(zip(talk.places, talk.turns, strict=True)):
        if turn["content"]:
            words[f"{place}.content"] = WORD.format(index)
            turn = turn | {"content": words[f"{place}.content"]}
        calls = []
        for number, call in enumerate(turn.get("tool_calls", ())):
            name, value = (WORD.format(f"{index}.{number}{part}") for part in ("", "="))
            words[f"{place}.tool_calls[{number}]"] = name
            words[f"{place}.tool_calls[{number}].{ARGUMENTS}"] = value
            calls.append(call | {"function": {"name": name, "arguments": {"0": value}}})
        turns.append(turn | {"tool_calls": calls} if calls else turn)
    tools = []
    for number, tool in enumerate(talk.tools):
        words[f"tools[{number}]"] = WORD.format(f"-{number}")
        tools.append({**tool, "function": {**tool["function"], "name": words[f"tools[{number}]"]}})
    return replace(talk, turns=tuple(turns), tools=tuple(tools)), words


def _contents(talk: Talk) -> dict[str, str]:
    return {f"{place}.content": text_of(turn).strip() for place, turn in zip(talk.places, talk.turns, strict=True)}


def _is_tool(place: str, form: Sequence[str]) -> bool:
    """Whether a part is a tool that this form leaves out on purpose."""
    return "untooled" in form and place.startswith("tools[")


def _lost(lost: Sequence[str], talk: Talk) -> BadRow:
    """What a template leaves out; of a speaker that nobody knows, whose turn it is rather than what it holds."""
    unknown = {place: turn["role"] for place, turn in zip(talk.places, talk.turns, strict=True)}
    unknown = {place: role for place, role in unknown.items() if role not in ROLES.values()}
    faults: dict[str, Fault] = {}
    for place in lost:
        turn = place.rpartition("].")[0] + "]"
        if turn in unknown:
            values = {"field": turn, "role": printable(unknown[turn]), "known": ", ".join(ROLES)}
            faults[turn] = ("data.role_not_written", values)
        else:
            faults[place] = ("data.not_written", {"field": printable(place)})
    return BadRow(*faults.values())
