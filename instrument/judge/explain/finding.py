"""What a rule found: a verdict, the numbers it rests on, and the key that would change it.

The sentences are in the catalogue: `key`, and what to change as `<key>.hint` where there is something to change.
Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...messages import catalogue, say_in
from ..wording import OURS, keys_of

if TYPE_CHECKING:
    import numpy as np

TOPICS = {
    "overall": "explain.what.overall",
    "outcome": "explain.what.outcome",
    "loss": "explain.what.loss",
    "eval_loss": "explain.what.eval_loss",
    "grad_norm": "explain.what.grad_norm",
    "learning_rate": "explain.what.learning_rate",
    "loss_scale": "explain.what.loss_scale",
    "memory": "explain.what.memory",
    "time": "explain.what.time",
}
"""In the order a person asks, with the sentence that says what each is."""
VERDICTS = {
    "healthy": "explain.verdict.healthy",
    "watch": "explain.verdict.watch",
    "wrong": "explain.verdict.wrong",
    "note": "explain.verdict.note",
    "undecided": "explain.verdict.undecided",
}
# Means of fewer steps still show the batch rather than the run.
WINDOW = 12


@dataclass(frozen=True)
class Phrase:
    """A part of a sentence, with a key of its own."""

    key: str
    values: dict[str, Any] = field(default_factory=dict)

    def sentence(self, lang: str) -> str:
        return say_in(lang, self.key, **self.values)


@dataclass(frozen=True)
class Finding:
    """One judgement.

    Attributes:
        topic: one of TOPICS.
        verdict: one of VERDICTS; a note is a fact or advice and judges nothing, `undecided` says what would tell.
        key: of its sentence in the catalogue.
        values: for its placeholders; a Phrase is said in the reader's language.
        advises: whether what to change is shown; false where stronger evidence asks for something else.
        repeats: a finding whose advice is that of this one too.
    """

    topic: str
    verdict: str
    key: str
    values: dict[str, Any] = field(default_factory=dict)
    advises: bool = True
    repeats: Finding | None = None

    def sentence(self, lang: str) -> str:
        """The judgement with its evidence."""
        return say_in(lang, self.key, **self._said(lang))

    def hint(self, lang: str, trainer: str = OURS) -> str | None:
        """What to change, if anything, in the keys of the program that trains.

        Args:
            trainer: one of TRAINERS. For others than lora-train `<key>.hint_stock` is preferred where there is one.
        """
        if self.repeats is not None:
            return self.repeats.hint(lang, trainer)
        if not self.advises:
            return None
        keys = [f"{self.key}.hint"] if trainer == OURS else [f"{self.key}.hint_stock", f"{self.key}.hint"]
        for key in keys:
            if key in catalogue(lang):
                return keys_of(trainer, say_in(lang, key, **self._said(lang)))
        return None

    def _said(self, lang: str) -> dict[str, Any]:
        """The values, what is a sentence itself in that language."""
        return {
            name: value.sentence(lang) if isinstance(value, Phrase) else value for name, value in self.values.items()
        }

    def as_json(self, lang: str, trainer: str = OURS) -> dict[str, Any]:
        """For scripts: {topic, key, verdict, step, values, change}; what is not finite is null."""
        values = {name: _plain(value) for name, value in self.values.items()}
        step = values.get("step")
        return {
            "topic": self.topic,
            "key": self.key,
            "verdict": self.verdict,
            "step": step if isinstance(step, (int, float)) else None,
            "values": values,
            "change": self.hint(lang, trainer),
        }


def _plain(value: Any) -> Any:
    if isinstance(value, Phrase):
        return value.key
    if isinstance(value, (bool, int, str)) or value is None:
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    return number if math.isfinite(number) else None


def median(values: Sequence[float] | np.ndarray) -> float:
    """The median of finite values; NaN of none."""
    import numpy as np

    kept = np.asarray(values, "float64")
    kept = kept[np.isfinite(kept)]
    return float(np.median(kept)) if len(kept) else math.nan


def scatter(values: Sequence[float] | np.ndarray) -> float:
    """Their spread as a standard deviation, unmoved by single outliers: 1.4826 x the median deviation."""
    import numpy as np

    kept = np.asarray(values, "float64")
    return 1.4826 * median(np.abs(kept - median(kept)))


def ends(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Medians of the first and the last values, `at_end` of them."""
    n = at_end(len(values))
    return median(values[:n]), median(values[-n:])


def at_end(n: int) -> int:
    """How many values stand for an end of n: WINDOW, a fifth of a short run, a twentieth of a long one."""
    return max(1, min(max(WINDOW, n // 20), n // 5))


def listed(numbers: Sequence[float] | np.ndarray, most: int = 5) -> str:
    """The first few, and how many more: "3, 8, 21 (+4)"."""
    text = ", ".join(f"{int(number):,}" for number in numbers[:most])
    return f"{text} (+{len(numbers) - most})" if len(numbers) > most else text


def clock(seconds: float) -> str:
    """A time: 0:07:12; under a minute 7.2 s; ? where a log has none that is finite."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
