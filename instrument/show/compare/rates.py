"""Speed and memory of runs side by side, on whatever they ran; and what a log cannot tell of the cause."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...judge.explain.finding import Finding, Phrase, median
from ...read.history import History
from ..page.people import number
from .words import listed

# Timings of the same work on the same machine differ by less.
FASTER = 1.05
RATES = {"train_samples_per_second": "compare.unit_samples", "train_steps_per_second": "compare.unit_steps"}
"""Of the Trainer's last line, with what they count."""


def _remark(key: str, verdict: str = "note", **values: Any) -> Finding:
    return Finding("compare", verdict, key, values)


def rates(histories: Sequence[History], names: Sequence[str]) -> list[Finding]:
    """Training and evaluation speed, memory, and what a difference in speed does not show."""
    speeds = [finding for finding in (training(histories, names), evaluation(histories, names)) if finding]
    found = [*speeds, *([held] if (held := memory(histories, names)) else [])]
    if any("factor" in finding.values for finding in speeds):
        cards = [card(history) for history in histories]
        if all(cards) and len(set(cards)) == 1:
            found.append(_remark("compare.speed_same_card", card=cards[0]))
        elif any(cards) or any(history.stock for history in histories):
            found.append(_remark("compare.speed_cause"))
    return found


def card(history: History) -> str:
    """The GPU a run names; empty on the CPU, and where the log does not say."""
    gpus = history.env.get("gpus")
    return ", ".join(dict.fromkeys(map(str, gpus))) if isinstance(gpus, list) else ""


def training(histories: Sequence[History], names: Sequence[str]) -> Finding | None:
    """Tokens a second at the median step, else what the Trainer's last line says of rows or steps."""
    values = [median(history.column("tokens_per_second")) for history in histories]
    if np.isfinite(values).all():
        return _faster("compare.speed_better", "compare.speed_alike", values, names)
    for name, unit in RATES.items():
        values = [_summary(history, name) for history in histories]
        if np.isfinite(values).all():
            said = Phrase(unit)
            return _faster("compare.train_rate_better", "compare.train_rate_alike", values, names, unit=said)
    return None


def _summary(history: History, name: str) -> float:
    value = history.summary.get(name)
    return float(value) if isinstance(value, (int, float)) else np.nan


def evaluation(histories: Sequence[History], names: Sequence[str]) -> Finding | None:
    """Rows a second of the evaluations, with the size of their batches; batches a second where rows are not logged."""
    rows = [_evals(history, "eval_samples_per_second") for history in histories]
    steps = [_evals(history, "eval_steps_per_second") for history in histories]
    if np.isfinite(rows).all():
        sizes = [r / s if s > 0 else np.nan for r, s in zip(rows, steps, strict=True)]
        batches = listed(names, [number(float(f"{size:.1f}"), 3) for size in sizes])
        return _faster("compare.eval_speed_better", "compare.eval_speed_alike", rows, names, batches=batches)
    if np.isfinite(steps).all():
        return _faster("compare.eval_steps_better", "compare.eval_steps_alike", steps, names)
    return None


def _evals(history: History, name: str) -> float:
    return median(history.evals[name].to_numpy("float64")) if name in history.evals else np.nan


def _faster(better: str, alike: str, values: Sequence[float], names: Sequence[str], **more: Any) -> Finding:
    ordered = sorted(range(len(values)), key=lambda i: -values[i])
    texts = listed(names, [number(value) for value in values])
    first, last = values[ordered[0]], values[ordered[-1]]
    if not last > 0 or first / last < FASTER:
        return _remark(alike, listed=texts, **more)
    more |= {"winner": names[ordered[0]], "slowest": names[ordered[-1]], "factor": first / last}
    return _remark(better, listed=texts, **more)


def memory(histories: Sequence[History], names: Sequence[str]) -> Finding | None:
    """The most memory that was held: of the GPU where every run has one."""
    for column in ("memory_reserved_gib", "host_memory_gib"):
        held = [history.column(column) for history in histories]
        if all(np.isfinite(values).any() for values in held):
            most = [float(np.nanmax(values)) for values in held]
            least, greatest = int(np.argmin(most)), max(most)
            texts = listed(names, [number(value, 3) for value in most])
            if most[least] > 0.95 * greatest:
                return _remark("compare.memory_alike", listed=texts)
            percent = 100 * (1 - most[least] / greatest)
            return _remark("compare.memory_better", listed=texts, winner=names[least], percent=percent)
    return None
