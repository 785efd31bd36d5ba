"""Conversations: from a row's turns to text through a chat template, with the assistant's turns found in it.

What the assistant writes is trained on: in every one of its turns the content and what ends the turn
("<|im_end|>"), nothing else. Templates that mark it with {% generation %} are taken at their word. In the others
a turn is found by rendering the conversation up to it, with the header that asks for an answer, and past it:

    before = render(turns[:i], header)      "...<|im_start|>assistant\\n"
    after  = render(turns[:i + 1])          "...<|im_start|>assistant\\nHello<|im_end|>\\n"

which holds if `before` begins `after` and `after` begins the whole conversation. Many templates write a turn otherwise
once others follow: they drop earlier reasoning (Qwen3, gpt-oss), move the system prompt to the last question (Mistral)
or end only the last turn (Phi-3). Such a turn becomes a training row of its own, `after` as it stands, so that it is
learned as the model will be asked for it. Where the header itself opens the reasoning ("<think>\\n") and the template
writes the answer without, the answer is put behind the header with its reasoning, or an empty one, closed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .chat.templates import Runner, find_template, is_jinja, read_template, text_of, with_text
from .chat.turns import REASONING, Talk, Turn, talk_of, turns_of
from .fields import Note
from .formats import Rendered
from .readers import BadRow

__all__ = ["ChatFormat", "find_template", "is_jinja", "read_template", "turns_of"]

# transformers' own pattern
GENERATION = re.compile(r"\{\%-?\s*generation\s*-?\%\}")
THOUGHT = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)
# What a header may end with that opens a reasoning -> what closes it.
CLOSINGS = {
    "<think>": "</think>",
    "<seed:think>": "</seed:think>",
    "[THINK]": "[/THINK]",
    "<|START_THINKING|>": "<|END_THINKING|>",
    "<|channel>thought": "<channel|>",
}
OPENED, CLOSED = ("|".join(map(re.escape, marks)) for marks in (CLOSINGS, CLOSINGS.values()))
OPENING = re.compile(rf"\s*(?P<opened>{OPENED})\s*(?P<closed>{CLOSED})?\s*")
MARK = re.compile(r"<\|[^|<>]*\|>")
# What templates call the switch of reasoning; tried only where the conversation does not fit without.
SWITCHES = ("enable_thinking", "thinking")


@dataclass(frozen=True)
class ChatFormat:
    """A chat template and the fields that hold the turns.

    Attributes:
        name: messages or sharegpt.
        template: Jinja.
        special_tokens: bos_token and the like, for the template.
        columns: data.columns.
    """

    name: str
    template: str
    special_tokens: Mapping[str, Any]
    columns: Mapping[str, str | None] = field(default_factory=dict)
    _runner: list[Runner] = field(default_factory=list, compare=False, repr=False)

    @property
    def runner(self) -> Runner:
        """The template, with what is known of it by now."""
        if not self._runner:
            self._runner.append(Runner(self.name, self.template, self.special_tokens))
        return self._runner[0]

    def render(self, row: Any) -> Rendered:
        """The row's text, and the answers that stand otherwise in a text of their own.

        Raises:
            BadRow: the turns are unusable, or the template refuses them or leaves a part of them out.
        """
        talk = self.runner.fitted(talk_of(self.name, row, self.columns))
        if GENERATION.search(self.template):
            return self._marked(talk)
        whole = self._upto(talk, len(talk.turns))
        spans, earlier, notes = [], [], [*talk.notes]
        for i in talk.answers:
            if i == 0 and not self._can_begin(talk):
                notes.append(("data.begins_with_answer", (("field", talk.places[0]),)))
                continue
            try:
                spans.append(self._answer(talk, i, whole))
            except BadRow as bad:
                earlier.append(self._alone(talk, i, bad))
        notes += [note for alone in earlier for note in alone.notes]
        if earlier:
            notes.append(("data.row_per_answer", ()))
        if earlier and not spans:
            *earlier, last = earlier
            whole, spans = last.text, list(last.spans)
        kept = tuple((start, end) for start, end in spans if end > start)
        return Rendered(whole, kept, tuple(replace(alone, notes=()) for alone in earlier), tuple(dict.fromkeys(notes)))

    def _marked(self, talk: Talk) -> Rendered:
        """What {% generation %} marks, without the turns that the row does not train on."""
        text, spans = self.runner.run(talk, mark=True)
        speaks = [i for i, turn in enumerate(talk.turns) if turn["role"] == "assistant"]
        if tuple(speaks) != talk.answers:
            if len(spans) != len(speaks):
                left_out = next(i for i in speaks if i not in talk.answers)
                raise BadRow(("data.counts", {"field": talk.places[left_out]}))
            spans = [span for i, span in zip(speaks, spans, strict=True) if i in talk.answers]
        earlier, several = [], len(spans) == len(talk.answers)
        for number, i in enumerate(talk.answers):
            written = "".join(text[start:end] for start, end in (spans[number : number + 1] if several else spans))
            if not _holds_reasoning(talk.turns[i], written):
                if i + 1 == len(talk.turns) or not several:
                    raise _lost_reasoning(talk, i) or AssertionError
                earlier.append(self._marked(replace(talk, turns=talk.turns[: i + 1], answers=(i,))))
                spans = [*spans[:number], (0, 0), *spans[number + 1 :]]
        notes = (*talk.notes, *([("data.row_per_answer", ())] if earlier else []))
        kept = tuple((start, end) for start, end in spans if end > start)
        return Rendered(text, kept, tuple(replace(alone, notes=()) for alone in earlier), notes)

    def _can_begin(self, talk: Talk) -> bool:
        """Whether the template asks for an answer to nothing."""
        try:
            self.runner.run(replace(talk, turns=()), header=True)
        except BadRow:
            return False
        return True

    def _upto(self, talk: Talk, i: int, header: bool = False, **values: Any) -> str:
        """The first i turns, with what asks for an answer behind them or without."""
        return self.runner.run(replace(talk, turns=talk.turns[:i]), header=header, **values)[0]

    def _answer(self, talk: Talk, i: int, text: str, **values: Any) -> tuple[int, int]:
        """Characters of the i-th turn that the assistant writes."""
        turns = talk.turns
        header = self._upto(talk, i, header=True, **values)
        after = self._upto(talk, i + 1, **values) if i + 1 < len(turns) or values else text
        if not (after.startswith(header) and text.startswith(after)):
            raise _not_prefix(talk, i)
        written = after[len(header) :]
        if not _holds_reasoning(turns[i], written):
            raise _not_prefix(talk, i)
        said = text_of(turns[i])
        if not said:  # calls of tools alone
            return len(header), len(after) - (len(written) - len(written.rstrip()))
        for content in (said, said.strip()):
            if written.startswith(content) and "add_generation_prompt" in self.template:
                start, closing = len(header), written[len(content) :]
                break
        else:
            start, closing = self._around(talk, i, text, after, header, values)
        # white space behind the end-of-turn token opens the next turn; on its own it is what ends this one
        return start, len(after) - (len(closing) - len(closing.rstrip()) if closing.strip() else 0)

    def _around(
        self, talk: Talk, i: int, text: str, after: str, header: str, values: Mapping[str, Any]
    ) -> tuple[int, str]:
        """Where the answer starts and what closes it, seen by putting a word that nobody says in its place."""
        word = "\ue000answer\ue001"
        while word in text:
            word = word[:-1] + "x\ue001"
        turns = (*talk.turns[:i], with_text(talk.turns[i], word))
        marked = self._upto(replace(talk, turns=turns), i + 1, **values)
        opening, found, closing = marked.partition(word)
        asks = "add_generation_prompt" in self.template or header != (self._upto(talk, i, **values) if i else "")
        # a template without a header to ask with writes one into the answer's turn; white space alone is the answer's
        start = len(header) if asks or not opening[len(header) :].strip() else len(opening)
        if not found or not after.endswith(closing) or not (asks or after.startswith(opening)):
            raise _not_prefix(talk, i)
        return start, closing

    def _alone(self, talk: Talk, i: int, fault: BadRow) -> Rendered:
        """The conversation up to the i-th turn, which is all that is trained on.

        Raises:
            BadRow: the template does not begin the answer as it asks for it.
        """
        if self.runner.always_asks:
            raise _not_prefix(talk, i)
        upto = replace(talk, turns=talk.turns[: i + 1])
        wanted = _reasoning(talk.turns[i]) != ""
        refused = fault
        ways: list[dict[str, bool]] = [{}, *({switch: wanted} for switch in SWITCHES if switch in self.template)]
        folded = replace(upto, turns=(*talk.turns[:i], _folded(talk.turns[i])))
        talks = [upto, folded] if "think>" in self.template and folded != upto else [upto]
        for own, values in ((own, values) for own in talks for values in ways):
            try:
                text = self._upto(own, i + 1, **values)
                span = self._answer(own, i, text, **values)
            except BadRow as bad:
                refused = bad
                continue
            return Rendered(text, (span,), notes=_switched(values))
        repaired = next(filter(None, (self._behind_opening(upto, i, values) for values in ways)), None)
        if repaired is None:
            raise _lost_reasoning(talk, i) or refused
        return repaired

    def _behind_opening(self, talk: Talk, i: int, values: Mapping[str, Any]) -> Rendered | None:
        """The answer put behind a header that opens a reasoning, which the template leaves out of the answer."""
        header, after = self._upto(talk, i, header=True, **values), self._upto(talk, i + 1, **values)
        common = next((k for k, (a, b) in enumerate(zip(header, after, strict=False)) if a != b), len(header))
        mark = header.rfind("<", 0, common)  # "<think></think>" and "</think>" part within a mark
        if ">" not in header[mark:common] and mark >= 0:
            common = mark
        found, rest = OPENING.fullmatch(header[common:]), after[common:].lstrip()
        thought, answer = _reasoning(talk.turns[i]), _answer_of(talk.turns[i]).strip()
        if found is None or (found["closed"] and thought):
            return None
        closing = CLOSINGS[found["opened"]]
        rest = rest.removeprefix(closing).lstrip()
        if not MARK.sub("", rest, count=1).startswith(answer) and not rest.startswith(answer):
            return None
        if found["closed"]:
            written = rest
        else:
            written = f"{thought}\n{closing}\n\n{rest}" if header.endswith("\n") else f"{thought}{closing}{rest}"
        ended = bool(rest[rest.index(answer) + len(answer) :].strip())
        end = len(header) + (len(written.rstrip()) if ended else len(written))
        return Rendered(
            header + written, ((len(header), end),), notes=(("data.thought_closed", ()), *_switched(values))
        )


def _switched(values: Mapping[str, Any]) -> tuple[Note, ...]:
    return tuple(("data.switched", (("switch", f"{name}={value}"),)) for name, value in values.items())


def _reasoning(turn: Turn) -> str:
    """The reasoning of a turn, in its own field or in front of its content."""
    for name in REASONING:
        if isinstance(turn.get(name), str) and turn[name].strip():
            return turn[name].strip()
    found = THOUGHT.match(text_of(turn))
    return found[1].strip() if found else ""


def _folded(turn: Turn) -> Turn:
    """The turn with its reasoning in front of its content, as templates without a field for it have it."""
    if not any(name in turn for name in REASONING):
        return turn
    bare = {name: value for name, value in turn.items() if name not in REASONING}
    return with_text(bare, f"<think>\n{_reasoning(turn)}\n</think>\n\n{text_of(turn)}")


def _answer_of(turn: Turn) -> str:
    """The content of a turn behind its reasoning."""
    return THOUGHT.sub("", text_of(turn), count=1)


def _holds_reasoning(turn: Turn, written: str) -> bool:
    return _reasoning(turn) in written


def _lost_reasoning(talk: Talk, i: int) -> BadRow | None:
    """The fault of a turn whose reasoning the template never writes."""
    if not _reasoning(talk.turns[i]):
        return None
    name = next((name for name in REASONING if talk.turns[i].get(name)), "content")
    return BadRow(("data.reasoning_not_written", {"field": f"{talk.places[i]}.{name}"}))


def _not_prefix(talk: Talk, i: int) -> BadRow:
    return BadRow(("data.not_prefix", {"turn": i + 1, "field": talk.places[i]}))
