"""From a row to its conversation: who says what, with which tools, and which answers are trained on.

    {"messages": [{"role": ..., "content": ...}, ...], "tools": [...]}             OpenAI's
    {"conversations": [{"from": ..., "value": ...}, ...], "system": ..., "tools": "[...]"}     ShareGPT's
    {"prompt": [turns], "completion": [turns]}                                     TRL's
    {"instruction": ..., "input": ..., "output": ..., "system": ..., "history": [[q, a], ...]}     LLaMA-Factory's

The names of fields and speakers may be mixed. Content in text parts is joined; a call of a tool may stand as OpenAI's
`tool_calls` or `function_call`, or as a turn of `function_call`. What cannot be kept is refused by its field's name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...errors import kind_of_value
from ..fields import HISTORY, SYSTEM, Fault, Note, is_empty, not_used, printable, require_supported
from ..formats import CHATS, missing, require_object, text_faults
from ..readers import BadRow
from .parts import joined
from .tools import calls_of, from_json, tools_of

_NAMES = {
    "user": ("human", "user", "prompter"),
    "assistant": ("gpt", "assistant", "bot", "chatbot", "chatgpt", "model", "ai"),
    "system": ("system",),
    "developer": ("developer",),
    "tool": (
        *("tool", "function", "observation", "ipython"),
        *("tool_response", "tool_result", "tool_results", "function_response", "function-response"),
    ),
    "call": ("function_call", "tool_call", "function-call"),
}
ROLES = {name: role for role, names in _NAMES.items() for name in names}
WHO, WHAT = ("role", "from"), ("content", "value", "text", "parts")
REASONING = ("reasoning_content", "reasoning", "thinking")
# What a turn says of whether it is trained on: the value that means no is `...: False`, or 0; of masks it is True.
TRAINED, MASKED = ("weight", "train", "loss", "trainable", "training"), ("masked", "mask", "ignore")
UNREAD = ("train_detail", "training_detail", "loss_mask", "loss_weight", "token_weights")
# Fields of a question and its answer, each text or turns.
QUESTIONS = (("prompt", "completion"), ("instruction", "output"))
TURN_MEDIA = ("images", "image", "audio", "audios", "video", "videos")
Turn = dict[str, Any]


@dataclass(frozen=True)
class Talk:
    """A conversation.

    Attributes:
        turns: role and content, and for the assistant reasoning_content and tool_calls.
        places: what each turn is called in a message: "messages[2]".
        answers: indices of the assistant's turns that are trained on.
        tools: what it may call, in OpenAI's form.
        values: more for the template: a row's chat_template_kwargs.
        notes: what is to be said about the row.
    """

    turns: tuple[Turn, ...]
    places: tuple[str, ...]
    answers: tuple[int, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[Note, ...] = ()


def talk_of(name: str, row: Any, columns: Mapping[str, str | None] | None = None) -> Talk:
    """The row's conversation.

    Args:
        name: messages or sharegpt, which says where turns are looked for first.
        row: as read, with its columns renamed.
        columns: of data.columns those that name a turn's role and content are read here.

    Raises:
        BadRow: a turn is missing, is not text, or nobody knows its role; or a field cannot be kept.
    """
    require_object(row)
    used, found, first_trained = _turns_field(name, row)
    if not found:
        raise BadRow(("data.empty_field", {"field": used[0]}))
    tools = next((name for name in ("tools", "functions") if not is_empty(row.get(name))), "tools")
    used = [*used, *SYSTEM, tools, "chat_template_kwargs"]
    require_supported(row, used)
    columns = columns or {}
    who = tuple(filter(None, (columns.get("role"),))) + WHO
    what = tuple(filter(None, (columns.get("content"),))) + WHAT
    turns, trained, faults, unread = [], [], [], []
    for index, (place, raw) in enumerate(found):
        reader = _Reader(place, raw, who, what, name)
        turns.append(reader.turn())
        trained.append(reader.is_trained() and index >= first_trained)
        faults += reader.faults
        unread += reader.unread
    if faults:
        raise BadRow(*faults)
    places = [place for place, _ in found]
    system = _system_of(row, turns)
    if system is not None:
        unread += [f"{system[0]}{name}" for name in joined(system[0], row[system[0]])[1]]
        turns, places, trained = [system[1], *turns], [system[0], *places], [False, *trained]
    answers = tuple(i for i, turn in enumerate(turns) if turn["role"] == "assistant" and trained[i])
    strangers = dict.fromkeys(turn["role"] for turn in turns if turn["role"] not in _NAMES)
    notes = not_used(row, [*used, *columns])
    notes += tuple(("data.not_used", (("field", name),)) for name in dict.fromkeys(unread))
    notes += tuple(("data.unknown_speaker", (("role", printable(role)),)) for role in strangers)
    return Talk(tuple(turns), tuple(places), answers, tools_of(row), _values_of(row), notes)


def turns_of(name: str, row: Any) -> list[Turn]:
    """The row's conversation as role and content.

    Raises:
        BadRow: as `talk_of` does.
    """
    return list(talk_of(name, row).turns)


def _turns_field(name: str, row: Mapping[str, Any]) -> tuple[list[str], list[tuple[str, Any]], int]:
    """The fields that hold the turns, (place, turn) of each, and the first that may be trained on."""
    own = CHATS[name][0]
    held = [name for name in (own, *(names[0] for names in CHATS.values() if names[0] != own)) if name in row]
    pairs = [pair for pair in QUESTIONS if all(name in row for name in pair)]
    if pairs and all(is_empty(row[name]) for name in held):  # columns of another format, filled with null
        held = []
    for field_ in sorted(held, key=lambda name: is_empty(row[name]))[:1]:
        turns = row[field_]
        if isinstance(turns, str) and turns.lstrip().startswith("["):  # as tables keep them
            turns = from_json(field_, turns)
        if not isinstance(turns, list):
            raise BadRow(("data.not_turns", {"field": field_, "kind": kind_of_value(turns)}))
        return [field_], [(f"{field_}[{i}]", turn) for i, turn in enumerate(turns)], 0
    for question, answer in pairs:
        return _question_and_answer(row, question, answer)
    raise BadRow(missing(row, own))


def _question_and_answer(
    row: Mapping[str, Any], question: str, answer: str
) -> tuple[list[str], list[tuple[str, Any]], int]:
    before = _history_of(row)
    more, used = row.get("input"), [question, answer, *HISTORY]
    asked, said = row[question], row[answer]
    if isinstance(asked, str) and not is_empty(more):
        if faults := text_faults("input", more):
            raise BadRow(*faults)
        asked, used = f"{asked}\n{more}", [*used, "input"]
    prompt = asked if isinstance(asked, list) else [{"role": "user", "content": asked}]
    if isinstance(said, list) and len(said) > 1 and is_empty(asked):  # the completion asks itself
        prompt = []
    completion = said if isinstance(said, list) else [{"role": "assistant", "content": said}]
    turns = [*before]
    turns += [(f"{question}[{i}]" if prompt is asked else question, turn) for i, turn in enumerate(prompt)]
    first = len(turns)
    turns += [(f"{answer}[{i}]" if completion is said else answer, turn) for i, turn in enumerate(completion)]
    return used, turns, first


def _history_of(row: Mapping[str, Any]) -> list[tuple[str, Any]]:
    history = row.get("history")
    if is_empty(history):
        return []
    if not isinstance(history, list):
        raise BadRow(("data.not_turns", {"field": "history", "kind": kind_of_value(history)}))
    turns: list[tuple[str, Any]] = []
    for i, pair in enumerate(history):
        if isinstance(pair, dict):
            turns.append((f"history[{i}]", pair))
        elif isinstance(pair, list) and len(pair) == 2:
            turns.append((f"history[{i}]", {"role": "user", "content": pair[0]}))
            turns.append((f"history[{i}]", {"role": "assistant", "content": pair[1]}))
        else:
            raise BadRow(("data.not_pair", {"field": f"history[{i}]"}))
    return turns


def _system_of(row: Mapping[str, Any], turns: Sequence[Turn]) -> tuple[str, Turn] | None:
    """The system prompt that stands beside the turns; one that stands among them too must be the same."""
    held = [name for name in SYSTEM if not is_empty(row.get(name))]
    if len({str(row[name]) for name in held}) > 1:
        raise BadRow(("data.two_systems", {"field": held[1]}))
    for name in held[:1]:
        text, _ = joined(name, row[name])
        if faults := text_faults(name, text, may_be_empty=True):
            raise BadRow(*faults)
        if turns and turns[0]["role"] in ("system", "developer"):
            if turns[0].get("content") != text:
                raise BadRow(("data.two_systems", {"field": name}))
            return None
        return name, {"role": "system", "content": text}
    return None


def _values_of(row: Mapping[str, Any]) -> dict[str, Any]:
    values = row.get("chat_template_kwargs")
    if is_empty(values):
        return {}
    if not isinstance(values, dict):
        raise BadRow(("data.not_turns", {"field": "chat_template_kwargs", "kind": kind_of_value(values)}))
    return {name: value for name, value in values.items() if value is not None}


class _Reader:
    """One turn of a row, and what is wrong with it."""

    def __init__(self, place: str, raw: Any, who: Sequence[str], what: Sequence[str], name: str):
        self.place, self.raw, self.name = place, raw, name
        own = CHATS[name][1:]
        self.who, self.what = (own[0], *who), (own[1], *what)
        self.faults: list[Fault] = []
        self.unread: list[str] = []

    def turn(self) -> Turn:
        """The turn in OpenAI's form, without its nulls."""
        if not isinstance(self.raw, dict):
            _, who, what = CHATS[self.name]
            values = {"field": self.place, "kind": kind_of_value(self.raw), "who": who, "what": what}
            self.faults.append(("data.not_turn", values))
            return {"role": "", "content": ""}
        try:
            return self._turn(self.raw)
        except BadRow as bad:
            self.faults += bad.faults
            return {"role": "", "content": ""}

    def is_trained(self) -> bool:
        """What the turn says of itself; true where it says nothing."""
        raw, place = self.raw, self.place
        if not isinstance(raw, dict):
            return True
        speaks = self._role(raw, quietly=True) in ("assistant", "call")
        trained = True
        for name, yes in [(name, True) for name in TRAINED] + [(name, False) for name in MASKED]:
            value = raw.get(name)
            if value is None:
                continue
            if value not in (0, 1):  # True and False are these too
                self.faults.append(("data.counts", {"field": f"{place}.{name}"}))
            elif bool(value) is yes and not speaks:
                if name != "weight" or value is True:
                    self.faults.append(("data.counts_question", {"field": f"{place}.{name}"}))
            elif bool(value) is not yes:
                trained = False
        for name in UNREAD:
            if not is_empty(raw.get(name)):
                self.faults.append(("data.counts", {"field": f"{place}.{name}"}))
        return trained

    def _turn(self, raw: Mapping[str, Any]) -> Turn:
        role = self._role(raw)
        call = raw.get("function_call") if role == "assistant" else None
        what = _held(raw, self.what)
        content = raw[what] if what is not None else None
        if what is None and not (role == "assistant" and (not is_empty(raw.get("tool_calls")) or call)):
            raise BadRow(missing_in(raw, f"{self.place}.{self.what[0]}"))
        for name in TURN_MEDIA:
            if not is_empty(raw.get(name)):
                raise BadRow(("data.media", {"field": f"{self.place}.{name}"}))
        place = f"{self.place}.{what or self.what[0]}"
        if role == "call":
            role = "assistant"
            return {"role": role, "content": "", **self._others(raw, what), "tool_calls": self._calls(place, content)}
        turn = {"role": role, **self._others(raw, what)}
        if not is_empty(raw.get("tool_calls")):
            turn["tool_calls"] = self._calls(f"{self.place}.tool_calls", raw["tool_calls"])
        elif not is_empty(call):
            turn["tool_calls"] = self._calls(f"{self.place}.function_call", call)
        if not is_empty(raw.get("function_call")) and (is_empty(call) or not is_empty(raw.get("tool_calls"))):
            self._leave(f"{self.place}.function_call", "")
        calls = "tool_calls" in turn
        text = self._text(place, content, may_be_empty=role != "assistant" or calls, may_be_null=calls)
        return turn | {"content": text}

    def _calls(self, place: str, value: Any) -> list[dict[str, Any]]:
        calls, unread = calls_of(place, value)
        self._leave(place, *unread)
        return calls

    def _leave(self, place: str, *names: str) -> None:
        """Notes what of the turn is not read: messages[].content[].score."""
        field_, _, rest = place.partition("[")
        within = rest.partition("]")[2] if rest else ""
        self.unread += [f"{field_}{'[]' if rest else ''}{within}{name}" for name in names]

    def _role(self, raw: Mapping[str, Any], quietly: bool = False) -> str:
        who = _held(raw, self.who)
        if who is None:
            if quietly:
                return ""
            lacking = [f"{self.place}.{self.who[0]}"]
            lacking += [] if any(name in raw for name in self.what) else [f"{self.place}.{self.what[0]}"]
            raise BadRow(*(missing_in(raw, name) for name in lacking))
        value = raw[who]
        if not quietly and (faults := text_faults(f"{self.place}.{who}", value)):
            raise BadRow(*faults)
        role = ROLES.get(value.strip().lower()) if isinstance(value, str) else ""
        if role is None and self.name == "sharegpt" and not quietly:
            values = {"field": f"{self.place}.{who}", "role": printable(value), "known": ", ".join(ROLES)}
            raise BadRow(("data.unknown_role", values))
        return role if role is not None else value

    def _others(self, raw: Mapping[str, Any], what: str | None) -> Turn:
        """Fields of a turn that the template may read: reasoning, a tool's name, the id of a call, and more."""
        read = {*self.who, *([what] if what else []), "tool_calls", "function_call", *TRAINED, *MASKED, *UNREAD}
        others = {name: value for name, value in raw.items() if name not in read and not is_empty(value)}
        for name in REASONING:
            if name in others and (faults := text_faults(f"{self.place}.{name}", others[name])):
                raise BadRow(*faults)
        return others

    def _text(self, place: str, content: Any, may_be_empty: bool, may_be_null: bool) -> str:
        if content is None and may_be_null:
            return ""
        content, unread = joined(place, content)
        self._leave(place, *unread)
        if faults := text_faults(place, content, may_be_empty=may_be_empty):
            raise BadRow(*faults)
        return str(content)


def _held(raw: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The first of some fields that a turn has; one that is null only where no other is there."""
    return min((name for name in names if name in raw), key=lambda name: raw[name] is None, default=None)


def missing_in(turn: Mapping[str, Any], name: str) -> Fault:
    """The fault of a turn's field that is not there, with those that are."""
    return "data.no_turn_field", {"field": name, "found": printable(", ".join(map(str, turn)) or "-")}
