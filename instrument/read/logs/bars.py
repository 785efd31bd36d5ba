"""Progress bars: tqdm's in a console (`1010/5000 [20:12<1:19:48, 1.20s/it]`), the Trainer's in a notebook
(`[ 22/290 02:50 < 38:04, 0.12 it/s, Epoch 0.36/5]`). They know the step, which the lines beside them do not print.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

_TIME = r"(?:\d+ days?, ?)?\d[\d:]*"
_TQDM = re.compile(
    rf"(?<![\d.])(?P<n>\d+)/(?P<total>\d+)\s*\[\s*(?P<spent>{_TIME})\s*<\s*(?P<left>{_TIME}|\?)(?:,\s*(?P<rest>[^\]\n]*))?"
)
_NOTEBOOK = re.compile(
    rf"\[\s*(?P<n>\d+)/(?P<total>\d+)\s+(?P<spent>{_TIME})(?:\s*<\s*(?P<left>{_TIME}|\?))?"
    r"(?:,(?!\s*Epoch)\s*(?P<rest>[^\],\n]*))?(?:,\s*Epoch\s+(?P<epoch>[\d.]+)/(?P<epochs>[\d.]+))?\s*\]"
)
_STEPS_A_SECOND = re.compile(r"^\s*(?:[\d.?]+\s*)?(?:it/s|s/it|steps?/s|s/step)?\s*(?:,|$)")
_OTHER_WORK = re.compile(
    r"map|token|filter|load|download|fetch|generat|process|shard|eval|valid|predict|pack|sav|upload|merg|quantiz|"
    r"extract|split|\.safetensors|\.json|\.bin|dequant|truncat|convert|apply|adding|resolv",
    re.IGNORECASE,
)
_PER_EPOCH = re.compile(r"epoch", re.IGNORECASE)


@dataclass(frozen=True)
class Bar:
    """One state of a bar.

    Attributes:
        at: where it stands in the text.
        n, total: steps made and to be made.
        spent, left: seconds; `left` is None where the bar does not know yet.
        epochs: epochs to be made, in a notebook.
        titled: whether its title counts epochs, each of which begins anew.
    """

    at: int
    n: int
    total: int
    spent: float
    left: float | None
    epochs: float | None = None
    titled: bool = False


def seconds(text: str) -> float | None:
    """1:02:03, 02:50, `1 day, 2:03:04` or `1d 2h 3m 4s` in seconds."""
    days, _, clock = text.strip().rpartition(",")
    if parts := re.findall(r"(\d+)\s*([dhms])", clock):
        return sum(float(value) * {"d": 86400, "h": 3600, "m": 60, "s": 1}[unit] for value, unit in parts)
    found = re.match(r"\d+", days.strip())
    try:
        total = 0.0
        for part in clock.strip().split(":"):
            total = 60 * total + float(part)
    except ValueError:
        return None
    return total + 86400 * float(found.group() if found else 0)


def find_bars(text: str) -> list[Bar]:
    """Every bar that may be the training's, in order."""
    found = []
    for match in [*_TQDM.finditer(text), *_NOTEBOOK.finditer(text)]:
        groups = match.groupdict()
        before = text[max(text.rfind("\n", 0, match.start()) + 1, match.start() - 200) : match.start()]
        title = before.rpartition("}")[2].partition("%|")[0]
        n, total = (int(groups[name][:18]) for name in ("n", "total"))
        if n > total or not total or _OTHER_WORK.search(title) or not _STEPS_A_SECOND.match(groups["rest"] or ""):
            continue
        left, epochs = groups["left"], groups.get("epochs")
        found.append(
            Bar(
                match.start(),
                n,
                total,
                seconds(groups["spent"]) or 0.0,
                None if left in (None, "?") else seconds(left),
                float(epochs) if epochs and epochs.count(".") < 2 else None,
                bool(_PER_EPOCH.search(title)) and "epochs" not in groups,
            )
        )
    return sorted(found, key=lambda bar: bar.at)


def training_bar(bars: Sequence[Bar], at: Sequence[int]) -> list[Bar]:
    """The states of the bar that counts the training: the one that moves most between the lines at these places.

    An evaluation's bar has another total, and starts again each time.
    """
    if not bars:
        return []

    def moved(total: int) -> tuple[int, int, int]:
        own = [bar for bar in bars if bar.total == total]
        places = [bar.at for bar in own]
        beside = {own[i - 1].n for place in at if (i := bisect_left(places, place))}
        return len(beside), -sum(b.n < a.n for a, b in pairwise(own)), total

    best = max(Counter(bar.total for bar in bars), key=moved)
    return _across_epochs([bar for bar in bars if bar.total == best])


def _across_epochs(bars: list[Bar]) -> list[Bar]:
    """A bar that begins anew with each epoch, counted on."""
    if not any(bar.titled for bar in bars):
        return bars
    done, before, found = 0, 0, []
    for bar in bars:
        if bar.n < before:
            done += bar.total
        before = bar.n
        found.append(Bar(bar.at, done + bar.n, done + bar.total, bar.spent, bar.left, None, True))
    return found


def steps_beside(bars: Sequence[Bar], at: Sequence[int]) -> list[int] | None:
    """The step of the line at each place: that of the bar before it, or after it where those make more sense.

    None where neither grows from line to line: a console whose two streams were not written together.
    """
    places = [bar.at for bar in bars]
    before, after = [], []
    for place in at:
        i = bisect_left(places, place)
        before.append(bars[i - 1].n if i else -1)
        after.append(bars[i].n if i < len(bars) else -1)
    sound = [(steps.count(-1), steps) for steps in (before, after)]
    sound = [(lacking, steps) for lacking, steps in sound if _grows(_completed(steps))]
    return min(sound, key=lambda pair: (pair[0], _irregular(pair[1])))[1] if sound else None


def _completed(steps: list[int]) -> list[int]:
    """A log cut at its beginning or end lacks a bar there: the line is one interval away from its neighbour."""
    if len(steps) > 2 and steps[0] < 0:
        steps[0] = 2 * steps[1] - steps[2]
    if len(steps) > 2 and steps[-1] < 0:
        steps[-1] = 2 * steps[-2] - steps[-3]
    return steps


def _grows(steps: list[int]) -> bool:
    """Whether nearly every line has a step of its own; a resumed run goes back once in a while."""
    rises = sum(b > a for a, b in pairwise(steps))
    return min(steps, default=-1) >= 0 and rises >= 0.9 * (len(steps) - 1)


def _irregular(steps: list[int]) -> int:
    return len({b - a for a, b in pairwise(steps)})
