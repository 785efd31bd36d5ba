"""A chat template as Ollama writes one, in Go's template language, where the two can say the same.

    {{ if .System }}<s>{{ .System }}</s>{{ end }}{{ if .Prompt }}<u>{{ .Prompt }}</u>{{ end }}<a>{{ .Response }}</a>

Jinja is not translated: conversations of marked words are rendered, what stands around the words is read off, and what
comes of it is compared with the template's own rendering of four conversations. Where they differ there is no answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Message = dict[str, str]
Render = Callable[[list[Message], bool], str]
"""(messages, whether an answer is asked for) -> text."""

SYSTEM, FIRST, ANSWER, SECOND = "Lsystemq", "Lfirstq", "Lanswerq", "Lsecondq"


@dataclass(frozen=True)
class GoTemplate:
    """What stands around the system prompt, a question and an answer.

    Attributes:
        system: before and after the system prompt; None: the template has no place for one.
        user: before and after a question.
        header: what asks for an answer.
        end: what ends one.
        default: the system prompt of a conversation without one.
    """

    system: tuple[str, str] | None
    user: tuple[str, str]
    header: str
    end: str
    default: str = ""

    def text(self) -> str:
        """In Go's language."""
        system = ""
        if self.system is not None:
            system = f"{{{{ if .System }}}}{self.system[0]}{{{{ .System }}}}{self.system[1]}{{{{ end }}}}"
        user = f"{{{{ if .Prompt }}}}{self.user[0]}{{{{ .Prompt }}}}{self.user[1]}{{{{ end }}}}"
        return f"{system}{user}{self.header}{{{{ .Response }}}}{self.end}"

    def render(self, messages: list[Message]) -> str:
        """What Ollama sends to the model for a conversation that ends with a question."""
        said = {"role": "system", "content": self.default}
        system, turns = (messages[0], messages[1:]) if messages[0]["role"] == "system" else (said, messages)
        text = "" if self.system is None or not system["content"] else system["content"].join(self.system)
        for turn in turns:
            is_user = turn["role"] == "user"
            text += turn["content"].join(self.user) + self.header if is_user else turn["content"] + self.end
        return text

    @property
    def can_be_written(self) -> bool:
        """Whether none of its words ends the quotation or means something to Go."""
        words = [*(self.system or ()), *self.user, self.header, self.end, self.default]
        return not any(mark in word for word in words for mark in ("{{", "}}", '"""'))


def go_template(render: Render, bos: str | None) -> GoTemplate | None:
    """The template in Go's language; None where it cannot be said there.

    Args:
        render: raises whatever a template raises for messages it does not take.
        bos: the token that the model's file puts before every text by itself; the template does not repeat it.
    """
    try:
        found = _read_off(lambda messages, asked: render(messages, asked).removeprefix(bos or ""))
    except Exception:  # Jinja raises of every kind, and a part may not be found
        return None
    return found if found is not None and found.can_be_written else None


def _read_off(render: Render) -> GoTemplate | None:
    first, answer, second = user(FIRST), {"role": "assistant", "content": ANSWER}, user(SECOND)
    asked, closed = render([first], True), render([first], False)
    header = asked.removeprefix(closed)
    beginning, after_question = closed.split(FIRST)
    answered = render([first, answer], False)
    end = answered.removeprefix(asked + ANSWER)
    before_question = render([first, answer, second], True).removeprefix(answered).split(SECOND)[0]
    if not (beginning.endswith(before_question) and asked.startswith(closed) and answered.startswith(asked + ANSWER)):
        return None
    said = beginning.removesuffix(before_question)
    system = _system(render, before_question)
    default = ""
    if said:
        if system is None or not (said.startswith(system[0]) and said.endswith(system[1])):
            return None
        default = said[len(system[0]) : len(said) - len(system[1])]
    found = GoTemplate(system, (before_question, after_question), header, end, default)
    talks = [[first], [first, answer, second]]
    if system is not None:
        talks += [[{"role": "system", "content": SYSTEM}, *talk] for talk in talks]
    return found if all(found.render(talk) == render(talk, True) for talk in talks) else None


def _system(render: Render, before_question: str) -> tuple[str, str] | None:
    try:
        text = render([{"role": "system", "content": SYSTEM}, user(FIRST)], False)
        before, after = text.split(FIRST)[0].removesuffix(before_question).split(SYSTEM)
    except Exception:  # the template refuses a system prompt or leaves it out
        return None
    return before, after


def user(text: str) -> Message:
    """A question."""
    return {"role": "user", "content": text}
