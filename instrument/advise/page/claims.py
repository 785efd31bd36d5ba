"""How the trials of a sweep ended, as its workers wrote it: claims/003.2/outcome.json of the last attempt at each.

    {"ended": "done", "value": 1.62, "step": 36, "steps": 40, "seconds": 52.1, "settings": {...}, "why": {"en": ...}}

Read with suspicion: a file that is torn or says something else is a trial that has not ended.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...messages import LANGUAGES
from ...read.damaged import parse_own_json
from ...read.files import read_own
from ..sources import LARGEST, last_attempts

STUDY, CLAIMS, OUTCOME = "study.yaml", "claims", "outcome.json"
DEAD = ("collapse", "diverged", "memory", "refused", "crash")
ENDED = {
    "done": "sweep.ended.done", "early": "sweep.ended.early", "collapse": "sweep.ended.collapse",
    "diverged": "sweep.ended.diverged", "memory": "sweep.ended.memory", "refused": "sweep.ended.refused",
    "crash": "sweep.ended.crash",
}  # fmt: skip
"""How a trial may have ended, with its words."""


@dataclass(frozen=True)
class Claim:
    """A trial that somebody has taken.

    Attributes:
        name: of its last attempt.
        ended: one of ENDED; None while it goes on.
        settings: what it varies.
        value, step: the best evaluation and where.
        seconds: that the last attempt took.
        why: by language, where it did not run through.
    """

    name: str
    ended: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    value: float | None = None
    step: int | None = None
    seconds: float | None = None
    why: dict[str, str] | None = None

    @property
    def is_dead(self) -> bool:
        return self.ended in DEAD


def read_claims(folder: Path) -> list[Claim]:
    """The trials of a study that were taken, in their order."""
    inner = folder / CLAIMS
    paths = [path for path in sorted(inner.iterdir()) if path.is_dir()] if inner.is_dir() else []
    return [_claim(path) for path in last_attempts(paths)]


def _claim(path: Path) -> Claim:
    found = _read(path / OUTCOME)
    if found.get("ended") not in ENDED:
        return Claim(path.name, settings=_read(path / "settings.json"))
    why, settings = found.get("why"), found.get("settings")
    said = {lang: str(why.get(lang, "")) for lang in LANGUAGES} if isinstance(why, dict) else None
    value, step, seconds = (_number(found.get(key)) for key in ("value", "step", "seconds"))
    own = settings if isinstance(settings, dict) else {}
    return Claim(path.name, found["ended"], own, value, None if step is None else int(step), seconds, said)


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > LARGEST:
            return {}
        found = parse_own_json(read_own(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _number(value: Any) -> float | None:
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
    return float(value) if known else None
