"""Which run is best on the metric that decides, and whether it is more than chance.

    best_i   = the best mean of up to SMOOTH neighbouring evaluations, corrected for how many were as good
    noise    = scatter of the run's own evaluations over sqrt(SMOOTH)    (judge/noise.py), or the counting error of a
               share of so many rows
    winner   : the best is ahead of the second by more than SEED of its level, and
               with stored rows      the same rows, held against each other one by one, say so; p is divided by the
                                     number of runs tried
               without               by more than z(runs) x the noise of both
               of MANY runs and more by more than the other gaps among the better half let expect (Renyi's spacings):
                                     seeds alone scatter runs, and the best of thirty is always ahead of something

A run whose seed alone differs ends somewhere else: of few runs no log can tell how far, so SEED is assumed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np

from ...judge.explain.finding import Finding
from ...judge.metrics import BY_TASK, CLASSIFIERS, DECIDES, lower_is_better, measured, named
from ...judge.noise import FEW, noise_of
from ...judge.paired import paired
from ...read.eval_rows import EvaluationRows
from ...read.history import History
from ..page.people import number
from .comparable import Comparability, eval_rows
from .words import listed

SMOOTH = 3
# Two runs that differ only in their seed end this far apart, as a share of their level.
SEED = 0.01
# Of an evaluation whose wobble is not known from its few neighbours.
ASSUMED = 0.02
# Runs of which the gaps between them tell how far seeds scatter.
MANY = 8
CHANCE = 0.02


@dataclass(frozen=True)
class Best:
    """The best evaluation of a run.

    Attributes:
        value: as logged at `step`, the middle of the best stretch.
        level: of that stretch, corrected for how many were as good: what is ranked.
        error: standard deviation of the level.
        step: of the evaluation.
        n: evaluations.
    """

    value: float
    level: float
    error: float
    step: int
    n: int


def metrics_of(histories: Sequence[History]) -> list[str]:
    """What every evaluation measured, the metric that decides first."""
    common = [name for name in measured(histories[0]) if all(name in measured(h) for h in histories)]
    chosen = {named(history, common) for history in histories}
    decides = [name for name in chosen if name is not None] if len(chosen) == 1 else []
    if not decides and (any(history.task in CLASSIFIERS for history in histories) or set(DECIDES) & set(common)):
        decides = [name for name in DECIDES if name in common]
    if not decides and "eval_loss" not in common:  # of rewards
        decides = [name for name in BY_TASK.get(histories[0].task, ()) if name in common]
    first = [*decides, *(["eval_loss"] if "eval_loss" in common else [])][:1]
    return [*first, *(name for name in common if name not in first)]


def best_of(history: History, metric: str, lower: bool) -> Best | None:
    """The best stretch of a run's evaluations; None where none is finite."""
    step, values = history.evals["step"].to_numpy("float64"), history.evals[metric].to_numpy("float64")
    kept = np.isfinite(values)
    step, values = step[kept], values[kept]
    if not len(values):
        return None
    signed = values if lower else -values
    share = 0.0 <= values.min() <= values.max() <= 1.0 and not lower
    rows = eval_rows(history)
    counted = math.sqrt(max(values.mean() * (1 - values.mean()), 0.0) / rows) if share and rows > 0 else 0.0
    noise = noise_of(signed, 0.0 if counted else ASSUMED)
    sigma = max(noise.sigma, counted)
    size = min(SMOOTH, len(values)) if len(values) >= FEW else 1
    means = np.convolve(signed, np.ones(size) / size, "valid")
    at, error = int(np.argmin(means)), sigma / math.sqrt(size)
    as_good = max(1.0, np.sum(means <= means[at] + 4 * error) / size)
    # the least of m draws lies below their level by about sqrt(2 ln m) of their deviation
    level = float(means[at]) + (error * math.sqrt(2 * math.log(as_good)) if size > 1 else 0.0)
    middle = at + int(np.argmin(signed[at : at + size]))
    return Best(float(values[middle]), level if lower else -level, error, int(step[middle]), len(values))


def rank(histories: Sequence[History], names: Sequence[str], known: Comparability) -> list[Finding]:
    """The metric that decides with a winner where there is one, the other metrics as facts."""
    if known.verdict == "other":
        return []
    metrics = metrics_of(histories)
    found = []
    for place, metric in enumerate(metrics):
        lower = lower_is_better(metric, histories[0])
        bests = [best_of(history, metric, lower) for history in histories]
        if any(best is None for best in bests):
            continue
        kept = [best for best in bests if best is not None]
        texts = [f"{number(best.value)} @{best.step:,}" for best in kept]
        values = {"metric": metric, "listed": listed(names, texts), "n": len(kept)}
        if place:
            found.append(Finding("compare", "note", "compare.other_metric", values))
            continue
        found.append(_decided(kept, names, known, lower, values, metric))
    return found


def _decided(
    bests: Sequence[Best], names: Sequence[str], known: Comparability, lower: bool, values: dict, metric: str
) -> Finding:
    sign = 1 if lower else -1
    rows: list[EvaluationRows] = []
    if known.rows and metric == "eval_loss":
        rows = [_on(stored, best.step, known.common) for stored, best in zip(known.rows, bests, strict=True)]
        bests = [replace(b, level=float(r.loss_sum.sum() / r.weights.sum())) for b, r in zip(bests, rows, strict=True)]
    order = sorted(range(len(bests)), key=lambda i: sign * bests[i].level)
    first, second = order[0], order[1]
    gap, level = sign * (bests[second].level - bests[first].level), abs(bests[second].level)
    percent = 100 * gap / level if level else 0.0
    values = values | {"winner": names[first], "second": names[second], "percent": percent}
    ahead = stands_out([sign * best.level for best in bests])
    if rows:
        a, b = rows[first], rows[second]
        result = paired(a.loss_sum, a.n_tokens, b.loss_sum, b.n_tokens)
        values |= {"rows": result.n, "p": result.p}
        likely = result.p * (len(bests) - 1) < CHANCE and result.verdict == "rose"
        return _sentence("rows", likely and percent > 100 * SEED and ahead, known, values)
    share = not lower and 0 <= bests[first].level <= 1 >= level
    z = NormalDist().inv_cdf(1 - CHANCE / 2 / (len(bests) - 1))
    noise = z * math.hypot(bests[first].error, bests[second].error)
    values |= {"noise": 100 * noise / level if level else 0.0}
    return _sentence("evaluations", gap > max(SEED if share else SEED * level, noise) and ahead, known, values)


def _sentence(by: str, clear: bool, known: Comparability, values: dict) -> Finding:
    if not clear and values["n"] >= MANY:
        return Finding("compare", "undecided", "compare.no_winner_many", values)
    if not clear:
        key = "compare.no_winner_rows" if by == "rows" else "compare.no_winner_evals"
        return Finding("compare", "undecided", key, values)
    if known.verdict == "unknown":
        return Finding("compare", "undecided", "compare.winner_if", values)
    return Finding("compare", "healthy", "compare.winner_rows" if by == "rows" else "compare.winner_evals", values)


def stands_out(levels: Sequence[float]) -> bool:
    """Whether the lowest of MANY levels and more is further ahead of the second than the gaps behind let expect.

    Of sorted draws with an exponential tail the gaps i (x_{i+1} - x_i) are independent and alike (Renyi, 1953): the
    first over the mean of m others follows F(2, 2m), P(ratio > f) = (1 + f / m)^-m.
    """
    x = np.sort(np.asarray(levels, "float64"))
    if len(x) < MANY:
        return True
    m = len(x) // 2
    gaps = np.arange(1, m + 2) * np.diff(x[: m + 2])
    mean = float(gaps[1:].mean())
    return mean == 0 or (1 + gaps[0] / mean / m) ** -m < CHANCE


def _on(stored: dict[int, EvaluationRows], step: int, hashes: np.ndarray) -> EvaluationRows:
    """A run's rows at a step, else at the nearest that is stored, in the order of the hashes."""
    rows = stored[min(stored, key=lambda at: abs(at - step))]
    _, first = np.unique(rows.hash, return_index=True)
    at = first[np.isin(rows.hash[first], hashes)]
    weight = None if rows.weight is None else rows.weight[at]
    return EvaluationRows(rows.row[at], rows.loss_sum[at], rows.n_tokens[at], rows.hash[at], weight=weight)
