"""What makes one curve rougher than another: the wobble of eval_loss, the spread of grad_norm, batches foretold.

Runs that differ in their seed alone are repeats of one setting; settings with repeats are held against each other by
the logarithms of each run's number (Welch's t). Also: whether runs began with the same weights, and how far both losses
of a run ended apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...judge.course import judge
from ...judge.explain.finding import Finding, ends
from ...judge.explain.rules.evaluation import evaluations
from ...judge.explain.rules.norms import micro_batches
from ...judge.noise import FEW
from ...read.history import History
from ..page.people import number
from .differences import repeated
from .words import listed

# Student's t at 97.5% by whole degrees of freedom, and from 30 on.
T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
T_MANY = 2.09


def steadiness(histories: Sequence[History], names: Sequence[str]) -> list[Finding]:
    """Everything this file says of runs, in the order it is read."""
    found = [wobble(histories, names), gaps(histories, names), start(histories), *foretold(histories, names)]
    return [finding for finding in found if finding is not None] + repeats(histories)


def _remark(key: str, **values: Any) -> Finding:
    return Finding("compare", "note", key, values)


def wobble_of(history: History) -> float:
    """Percent by which eval_loss wobbles; NaN where the evaluations are too few to tell."""
    _, loss = evaluations(history)
    return judge(loss).wobble if len(loss) >= FEW else math.nan


def spread_of(history: History) -> float:
    """The 95th over the 5th percentile of grad_norm; NaN where the log has too few."""
    _, norm = history.finite("grad_norm")
    norm = norm[norm > 0]
    return float(np.quantile(norm, 0.95) / np.quantile(norm, 0.05)) if len(norm) >= 4 else math.nan


def wobble(histories: Sequence[History], names: Sequence[str]) -> Finding | None:
    """How far eval_loss wobbles in each; the scatter of n differences is known to about 1 / sqrt(n)."""
    wobbles = [wobble_of(history) for history in histories]
    if not np.isfinite(wobbles).all() or not min(wobbles) > 0:
        return None
    order = np.argsort(wobbles)
    calmest, widest = int(order[0]), int(order[-1])
    factor = wobbles[widest] / wobbles[calmest]
    sizes = [len(evaluations(histories[at])[1]) for at in (calmest, widest)]
    chance = math.exp(2 * math.sqrt(sum(1 / n for n in sizes)))
    values = {"listed": listed(names, [f"{value:.2g}%" for value in wobbles]), "factor": factor, "chance": chance}
    values |= {"widest": names[widest], "calmest": names[calmest]}
    return _remark("compare.wobble" if factor > chance else "compare.wobble_alike", **values)


def gaps(histories: Sequence[History], names: Sequence[str]) -> Finding | None:
    """Both losses of each run at its end."""
    texts = []
    for history in histories:
        _, loss = history.finite("loss")
        _, evaluated = evaluations(history)
        if not len(loss) or not len(evaluated):
            return None
        texts.append(f"{number(ends(loss)[1], 3)} / {number(evaluated[-1], 3)}")
    return _remark("compare.both_losses", listed=listed(names, texts))


def start(histories: Sequence[History]) -> Finding | None:
    """Whether they began with the same trained weights, where all of them say."""
    digits = [history.env.get("weights_fingerprint") for history in histories]
    if not all(isinstance(one, str) for one in digits) or any(history.env.get("start") for history in histories):
        return None
    return _remark("compare.same_start" if len(set(digits)) == 1 else "compare.other_start", n=len(set(digits)))


def foretold(histories: Sequence[History], names: Sequence[str]) -> list[Finding]:
    """The grad_norm that the rows or micro-batches of a step foretell for another's rows a step, beside what was
    measured there.
    """
    found = []
    for one, name in zip(histories, names, strict=True):
        micro = micro_batches(one)
        for other, its in zip(histories, names, strict=True):
            rows, (_, norm) = other.rows_per_step, other.finite("grad_norm")
            if other is one or micro is None or not rows.isdigit() or not len(norm):
                continue
            if rows in (str(micro.rows), one.rows_per_step):
                continue  # the last step of an epoch makes a run's mean fewer rows than its own
            there, error = float(np.mean(norm**2)), 2 * float(np.std(norm**2)) / math.sqrt(len(norm))
            low, high = micro.reach(int(rows))
            values = {"one": name, "rows": micro.rows, "other": its, "n": int(rows), "foretold": micro.norm(int(rows))}
            values |= {"low": low, "high": high, "measured": math.sqrt(there)}
            values |= {"from_": math.sqrt(max(there - error, 0.0)), "to": math.sqrt(there + error)}
            still = not any(history.number("training.learning_rate") for history in (one, other))
            key = "compare.norm_foretold_still" if still else "compare.norm_foretold"
            found.append(_remark(key, own=micro.norm(micro.rows), **values))
    return found


def repeats(histories: Sequence[History]) -> list[Finding]:
    """Settings with repeats, by the wobble of eval_loss and the spread of grad_norm."""
    groups = repeated(histories)
    if len(groups) < 2:
        return []
    found = []
    for key, alike, measure in (
        ("compare.repeats_wobble", "compare.repeats_wobble_alike", wobble_of),
        ("compare.repeats_norm", "compare.repeats_norm_alike", spread_of),
    ):
        logs = [np.log([measure(histories[at]) for at in own]) for own in groups]
        if all(np.isfinite(own).all() for own in logs):
            own_values = [_held(logs[0], own, groups[0], groups[n]) for n, own in enumerate(logs) if n]
            found += [_remark(key if differs else alike, **values) for differs, values in own_values]
    return found


def _held(one: np.ndarray, other: np.ndarray, here: Sequence[int], there: Sequence[int]) -> tuple[bool, dict[str, Any]]:
    """Whether two settings differ by more than chance, and what the sentence says of them."""
    gap = float(other.mean() - one.mean())
    parts = [own.var(ddof=1) / len(own) for own in (one, other)]
    error = math.sqrt(sum(parts))
    freedom = sum(parts) ** 2 / max(sum(p**2 / (len(o) - 1) for p, o in zip(parts, (one, other), strict=True)), 1e-300)
    t = T[max(int(freedom), 1) - 1] if freedom < len(T) else T_MANY
    names = [", ".join(chr(ord("A") + at) if at < 26 else str(at + 1) for at in own) for own in (here, there)]
    values = {"one": names[0], "other": names[1], "first": math.exp(one.mean()), "second": math.exp(other.mean())}
    values |= {"factor": math.exp(gap), "low": math.exp(gap - t * error), "high": math.exp(gap + t * error)}
    return abs(gap) > t * error, values
