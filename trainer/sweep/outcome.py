"""How a trial ended: its best evaluation, or the cause in words.

done      trained to its end                       early     stopped because others were better at the same step
collapse  not finite, and not to be healed         memory    a batch did not fit
refused   the configuration, the data or the model crash     a mistake in the code, or killed by the system
"""

from __future__ import annotations

import math
import re
import signal
from typing import Any

import numpy as np

from ...instrument.judge.metrics import lower_is_better
from ...instrument.messages import say
from ...instrument.read.history import SourceError
from ...instrument.read.logs import read_history
from .folder import Attempt
from .study_file import StudyFile
from .trial import OUT_OF_MEMORY

COLLAPSED, REFUSED = 3, 2
TAIL = 200
_ERROR = re.compile(r"^(?:error|오류): (.*)$", re.MULTILINE)


def outcome_of(attempt: Attempt, code: int, study: StudyFile, seconds: float) -> dict[str, Any]:
    """What outcome.json says.

    Args:
        code: exit code of the trial's process; negative: the signal that ended it.
        seconds: that this attempt took.
    """
    kind = {0: "done", COLLAPSED: "collapse", REFUSED: "refused", OUT_OF_MEMORY: "memory"}.get(code, "crash")
    value, step, last = best(attempt, study.metric)
    found: dict[str, Any] = {"ended": kind, "value": value, "step": step, "steps": last, "seconds": round(seconds, 1)}
    if kind != "done":
        found["why"] = cause(attempt, code)
    return found


def cause(attempt: Attempt, code: int) -> str:
    """Why a process ended, in one line."""
    if code < 0:
        return say("sweep.killed", signal=signal.Signals(-code).name)
    try:
        text = (attempt.claim / "output.txt").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return say("sweep.exit_code", code=code)
    errors = _ERROR.findall(text)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if code == COLLAPSED:
        errors = [line for line in lines if line.startswith(("COLLAPSE", "붕괴"))]
    return (errors or lines or [say("sweep.exit_code", code=code)])[-1][:TAIL]


def best(attempt: Attempt, metric: str) -> tuple[float | None, int | None, int]:
    """The best evaluation by the metric, its step, and the last step of all; None where there is none."""
    try:
        history = read_history(attempt.run)
    except (SourceError, OSError):
        return None, None, 0
    last = int(history.last_step)
    if metric not in history.evals:
        return None, None, last
    values = history.evals[metric].to_numpy("float64")
    if not np.isfinite(values).any():
        return None, None, last
    at = int(np.nanargmin(values) if lower_is_better(metric, history) else np.nanargmax(values))
    return (float(values[at]) if math.isfinite(values[at]) else None), int(history.evals["step"].iloc[at]), last
