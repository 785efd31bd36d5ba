"""How a trial ended: its best evaluation, or the cause in words.

done      trained to its end                       early     stopped because others were better at the same step
collapse  not finite, and not to be healed         memory    a batch did not fit
diverged  trained to its end, far from anywhere    refused   the configuration, the data or the model
                                                   crash     a mistake in the code, or ended by the system
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...instrument.advise.rules.budget import crossing
from ...instrument.advise.trial import Trial
from ...instrument.judge.explain.finding import ends
from ...instrument.judge.metrics import lower_is_better
from ...instrument.messages import LANGUAGES
from ...instrument.read.history import History, SourceError
from ...instrument.read.logs import read_history
from ...instrument.show.page.people import both
from .folder import OUTPUT, Attempt
from .study_file import LOSS, StudyFile
from .trial import OUT_OF_MEMORY

COLLAPSED, REFUSED = 3, 2
TAIL = 240
HOPELESS_OF = 3
"""Trials that have to have ended before one is stopped for being worse than most of them."""
_ERROR = re.compile(r"^(?:error|오류): (.*)$", re.MULTILINE)
_HEADED = re.compile(r"^(?:COLLAPSE|붕괴)[: ].*$", re.MULTILINE)


def outcome_of(attempt: Attempt, code: int, study: StudyFile, seconds: float) -> dict[str, Any]:
    """What outcome.json says.

    Args:
        code: exit code of the trial's process; negative: the signal that ended it.
        seconds: that this attempt took.
    """
    ended = {0: "done", COLLAPSED: "collapse", REFUSED: "refused", OUT_OF_MEMORY: "memory"}.get(code, "crash")
    history = history_of(attempt)
    dead = None if history is None else Trial("", "", history, {}, "", study.metric).death
    if ended == "done" and dead is not None:
        ended = "diverged"
    found: dict[str, Any] = {"ended": ended, "seconds": round(seconds, 1)}
    found |= reached(history, study.metric)
    if ended != "done":
        said = None if dead is None else {lang: dead.sentence(lang) for lang in LANGUAGES}
        found["why"] = said if ended in ("diverged", "collapse") and said else cause(attempt, code)
    return found


def history_of(attempt: Attempt) -> History | None:
    """What a trial has recorded so far; None where nothing is."""
    try:
        return read_history(attempt.run)
    except (SourceError, OSError):
        return None


def reached(history: History | None, metric: str) -> dict[str, Any]:
    """Best value and its step, the course of the metric, and the last step. Of the training loss: where it ends, and
    the step from which the rows are fitted."""
    found: dict[str, Any] = {"value": None, "step": None, "steps": 0, "curve": [], "lower": True}
    if history is None:
        return found
    found["steps"] = int(history.last_step)
    if metric == LOSS:
        _, loss = history.finite("loss")
        step = crossing([Trial("", "", history, {}, "")])
        found["value"] = float(ends(loss)[1]) if len(loss) else None
        found["step"] = int(step) if np.isfinite(step) else None
        return found
    if metric not in history.evals:
        return found
    steps, values = history.evals["step"].to_numpy("float64"), history.evals[metric].to_numpy("float64")
    found["lower"] = lower_is_better(metric, history)
    kept = np.isfinite(values)
    if not kept.any():
        return found
    steps, values = steps[kept], values[kept]
    at = int(np.argmin(values) if found["lower"] else np.argmax(values))
    curve = [[int(s), float(v)] for s, v in zip(steps, values, strict=True)]
    return found | {"value": float(values[at]), "step": int(steps[at]), "curve": curve}


def cause(attempt: Attempt, code: int) -> dict[str, str]:
    """Why a process ended, in one line of every language; what it said itself is in that in which it said it."""
    if code < 0:
        return both("sweep.killed", signal=signal.Signals(-code).name)
    try:
        text = (attempt.claim / OUTPUT).read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    found = (_HEADED.findall(text)[-1:] if code == COLLAPSED else []) or _ERROR.findall(text)[:1] or lines[-1:]
    return dict.fromkeys(LANGUAGES, found[0][:TAIL]) if found else both("sweep.exit_code", code=code)


def hopeless(own: dict[str, Any], others: Sequence[dict[str, Any]]) -> bool:
    """Whether a trial's best so far is worse than the median of what the others had reached by the same step.

    Source: the median stopping rule of Google Vizier (Golovin et al., 2017).

    Args:
        own, others: as `reached` gives them; the others have ended.
    """
    if not own["curve"]:
        return False
    step, sign = own["curve"][-1][0], 1 if own["lower"] else -1
    by_then = [[sign * value for at, value in other.get("curve") or () if at <= step] for other in others]
    bests = [min(values) for values in by_then if values]
    return len(bests) >= HOPELESS_OF and sign * own["value"] > float(np.median(bests))
