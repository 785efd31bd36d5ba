"""What a rule says: a verdict, the numbers it rests on, the trials they are of, and the command that follows."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from ..judge.explain.finding import Phrase
from ..messages import say_in

VERDICTS = {
    "answered": "advise.verdict.answered",
    "against": "advise.verdict.against",
    "not answered": "advise.verdict.not_answered",
}
"""The rule holds or gives its value; the evidence speaks against what was chosen; these runs cannot tell."""

SHOWN = 6
"""Commands of one advice."""


@dataclass(frozen=True)
class Step:
    """What to do next.

    Attributes:
        commands: to paste into a shell, one a line.
        cost: what they take together; None for a command that trains nothing.
    """

    commands: tuple[str, ...]
    cost: Phrase | None = None

    def text(self, lang: str) -> str:
        """A line a command, the cost behind the last; of many only the first are shown, and how many are left."""
        text = "\n".join(self.commands[:SHOWN])
        notes = [say_in(lang, "advise.more_commands", n=len(self.commands) - SHOWN)] * (len(self.commands) > SHOWN)
        notes += [] if self.cost is None else [self.cost.sentence(lang)]
        return f"{text}   # {'; '.join(notes)}" if notes else text


@dataclass(frozen=True)
class Advice:
    """One rule's answer.

    Attributes:
        rule: "P1" to "P20".
        verdict: one of VERDICTS.
        key: of its sentence in the catalogue.
        values: for its placeholders; a Phrase is said in the reader's language.
        trials: names of the runs it rests on.
        step: what to do, if anything.
    """

    rule: str
    verdict: str
    key: str
    values: dict[str, Any] = field(default_factory=dict)
    trials: tuple[str, ...] = ()
    step: Step | None = None

    def sentence(self, lang: str) -> str:
        """The verdict in words, with its evidence."""
        values = {
            name: value.sentence(lang) if isinstance(value, Phrase) else value for name, value in self.values.items()
        }
        return say_in(lang, self.key, **values)

    def next(self, lang: str) -> str | None:
        """The commands to paste, a line each, with what they cost."""
        return None if self.step is None else self.step.text(lang)

    def as_json(self, lang: str) -> dict[str, Any]:
        """For scripts: {rule, verdict, evidence, trials, next}; what is not finite is null."""
        return {
            "rule": self.rule,
            "verdict": self.verdict,
            "evidence": {
                "key": self.key,
                "sentence": self.sentence(lang),
                "values": {name: _plain(value) for name, value in self.values.items()},
            },
            "trials": list(self.trials),
            "next": self.next(lang),
        }


def _plain(value: Any) -> Any:
    if isinstance(value, Phrase):
        return value.key
    if isinstance(value, (bool, int, str)) or value is None:
        return value
    number = float(value)
    return number if math.isfinite(number) else None
