"""What was searched: the edges of the search (P2), batch sizes (P9), values side by side (P11), how many values so many
trials bear (P12), how they were drawn (P13), and whether the best is more than luck (P14).

Source of the rules: the tuning playbook, sections on exploration and on batch size. Batch sizes: Shallue et al.
(arXiv 1811.03600) against Schulman and Thinking Machines Lab, "LoRA Without Regret" (2025), and arXiv 2507.07101.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from typing import Any

from ...judge.explain.finding import Phrase
from ...show.page.people import setting
from ..advice import Advice
from ..study import Point, Study
from ..trial import Trial
from .common import names, seeds_again, shown, step_with, steps_with

RATE = "training.learning_rate"
# By how much the playbook's grids step, and a rank.
FURTHER, FURTHER_WHOLE = 3, 2
# With two values both are edges.
VALUES = 3
# Trials from which one more value of the optimizer may be searched (playbook, "How should Adam's hyperparameters be
# tuned?"): below 10 the rate alone, then beta1, from 25 epsilon; "many more" for beta2 is read as 50.
OPTIMIZER = {
    RATE: 0, "training.adam_beta1": 10, "training.adam_epsilon": 25, "training.adam_beta2": 50,
}  # fmt: skip
# A rate is tuned at a batch size from so many rates on.
TUNED = 3
# Budgets within so much of each other are the same.
SAME_BUDGET = 0.05


def profile(study: Study, key: str) -> dict[Any, Point]:
    """Of each value of a key the best point over everything else (an isolation plot), smallest value first."""
    found: dict[Any, Point] = {}
    for point in study.points:  # best first
        found.setdefault(plain(point.settings[key]), point)
    return dict(sorted(found.items(), key=lambda item: (isinstance(item[0], str), item[0])))


def plain(value: Any) -> float | str:
    """A number as it is, anything else as text."""
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else setting(value)


def as_good(study: Study, points: dict[Any, Point]) -> list[Any]:
    """Values that noise cannot tell from the best one."""
    best = min(points.values(), key=lambda point: point.mean)
    return [value for value, point in points.items() if not study.apart(best, point)]


def numeric(study: Study) -> list[str]:
    """Searched keys of the training or the adapter whose values are numbers."""
    own = [key for key in study.searched if key.startswith(("training.", "lora."))]
    return [key for key in own if all(trial.number(key) is not None for trial in study.trials)]


def edge(study: Study) -> Iterator[Advice]:
    """P2: the best value must not be the lowest or the highest that was tried."""
    study = study.searching
    keys = numeric(study)
    if not keys:
        trial = study.judged[0] if study.judged else study.trials[0]
        rate = trial.number(RATE)
        step = None if not rate else step_with(trial, {RATE: FURTHER * rate})
        key = "advise.p2_one" if rate else "advise.p2_none"
        yield Advice("P2", "not answered", key, {"value": shown(rate)}, names([trial]), step)
        return
    if not study.rankable:
        yield Advice("P2", "not answered", "advise.p2_unranked", {"key": ", ".join(keys)}, names(study.trials))
        return
    for key in keys:
        yield _edge_of(study, key, profile(study, key))


def _edge_of(study: Study, key: str, points: dict[Any, Point]) -> Advice:
    tried = sorted({trial.settings[key] for trial in study.trials})
    alive, kept = list(points), as_good(study, points)
    best = min(points, key=lambda value: points[value].mean)
    values = {"key": key, "value": shown(best), "n": len(alive), "metric": study.metric}
    values |= {"kept": ", ".join(map(shown, kept)), "level": study.shown(points[best].mean)}
    trials = names([trial for value in kept for trial in points[value].trials])
    if len(tried) < VALUES:
        return Advice("P2", "not answered", "advise.p2_few", values, trials, _beyond(points[best], key, best, up=True))
    if len(kept) == 1 and best in (alive[0], alive[-1]):
        up = best == alive[-1]
        if (up and tried[-1] > best) or (not up and tried[0] < best):
            return Advice("P2", "not answered", "advise.p2_border", values, trials)
        if not up and best == 0:  # nothing lies below
            return Advice("P2", "answered", "advise.p2_inside", values, trials)
        values |= {"side": Phrase("advise.highest" if up else "advise.lowest")}
        return Advice("P2", "not answered", "advise.p2_edge", values, trials, _beyond(points[best], key, best, up))
    if alive[-1] in kept or (alive[0] in kept and alive[0] != 0):
        step = seeds_again(study, sorted((points[value] for value in kept), key=lambda point: point.mean))
        return Advice("P2", "not answered", "advise.p2_unclear", values, trials, step)
    return Advice("P2", "answered", "advise.p2_inside", values, trials)


def _beyond(point: Point, key: str, value: float, up: bool):
    whole = isinstance(value, int)
    factor = FURTHER_WHOLE if whole else FURTHER
    further = value * factor if up else value / factor
    further = max(1, round(further)) if whole else float(f"{further:.2g}")
    if further == value:  # a half of the smallest, or any multiple of 0: the same run again
        return None
    return step_with(point.trials[0], {key: further})


def batch(study: Study) -> Iterator[Advice]:
    """P9: a batch size is judged only where the rate was tuned for it; and which budget was held is said."""
    study = study.searching
    if len(study.trials) < 2:
        return
    sizes = {trial.batch for trial in study.trials}
    if None in sizes:
        yield Advice("P9", "not answered", "advise.p9_unknown", {}, names([t for t in study.trials if t.batch is None]))
        return
    known = sorted(size for size in sizes if size is not None)
    if len(known) == 1:
        yield Advice("P9", "answered", "advise.p9_same", {"size": known[0]})
        return
    values: dict[str, Any] = {"sizes": ", ".join(f"{size:g}" for size in known), "conflict": Phrase("advise.conflict")}
    values |= {"budget": Phrase(_budget(study))}
    rates = {size: {t.number(RATE) for t in study.trials if t.batch == size} for size in known}
    if None in set().union(*rates.values()):
        yield Advice("P9", "not answered", "advise.p9_no_rate", values)
    elif any(len(own) < TUNED for own in rates.values()):
        step = steps_with([run for size in known for run in _untried(study, size)])
        yield Advice("P9", "against", "advise.p9_confounded", values, names(study.trials), step)
    elif not study.rankable or _budget(study) == "advise.budget_none":
        yield Advice("P9", "not answered", "advise.p9_unranked", values)
    else:
        yield _tuned_batches(study, known, values)


def _untried(study: Study, size: float) -> list[tuple[Trial, dict[str, Any]]]:
    """The runs that a batch size lacks for its rate to be tuned: rates above those it had and below, in turns."""
    own = [trial for trial in study.trials if trial.batch == size]
    rates = sorted({rate for trial in own if (rate := trial.number(RATE) or 0) > 0}) or [1e-4]
    found = []
    for n in range(TUNED - len(rates)):
        rate = rates[-1] * FURTHER ** (n // 2 + 1) if n % 2 == 0 else rates[0] / FURTHER ** (n // 2 + 1)
        found.append((own[0], {RATE: float(f"{rate:.2g}")}))
    return found


def _budget(study: Study) -> str:
    """What all had in common: steps, or rows seen."""
    steps = [trial.horizon for trial in study.trials]
    rows = [trial.horizon * (trial.batch or math.nan) for trial in study.trials]
    if max(steps) <= (1 + SAME_BUDGET) * min(steps):
        return "advise.budget_steps"
    return "advise.budget_rows" if max(rows) <= (1 + SAME_BUDGET) * min(rows) else "advise.budget_none"


def _tuned_batches(study: Study, sizes: list[float], values: dict[str, Any]) -> Advice:
    best: dict[Any, Point] = {}
    for size in sizes:
        own = [point for point in study.points if point.trials[0].batch == size]
        rates: dict[Any, Point] = {}
        for point in own:
            rates.setdefault(point.trials[0].number(RATE), point)
        if not own:
            return Advice("P9", "not answered", "advise.p9_edge", values | {"size": f"{size:g}"})
        kept = as_good(study, rates)
        if len(rates) < TUNED or min(rates) in kept or max(rates) in kept:
            return Advice("P9", "not answered", "advise.p9_edge", values | {"size": f"{size:g}"}, names(own[0].trials))
        best[size] = own[0]
    kept = as_good(study, best)
    winner = min(best, key=lambda size: best[size].mean)
    values |= {"winner": f"{winner:g}", "kept": ", ".join(f"{size:g}" for size in kept)}
    trials = names([trial for size in kept for trial in best[size].trials])
    key = "advise.p9_tuned" if len(kept) == 1 else "advise.p9_alike"
    return Advice("P9", "answered" if len(kept) == 1 else "not answered", key, values, trials)


def isolated(study: Study) -> Iterator[Advice]:
    """P11: of every value that was searched the best trial over everything else."""
    study = study.searching
    for key in study.searched:
        if not study.rankable or not (points := profile(study, key)) or len(points) < 2:
            continue
        counts = {value: sum(plain(t.settings[key]) == value for t in study.judged) for value in points}
        rows = [f"{shown(v)}: {p.trials[0].letter} {study.shown(p.mean)} ({counts[v]})" for v, p in points.items()]
        kept = as_good(study, points)
        values = {
            "key": key,
            "listed": ", ".join(rows[:8]),
            "kept": ", ".join(map(shown, kept)),
            "metric": study.metric,
        }
        values |= {"interval": 100 * study.sigma / max(abs(study.points[0].mean), 1e-12)}
        trials = names([trial for point in points.values() for trial in point.trials[:1]])
        clear = len(kept) == 1
        key = "advise.p11_clear" if clear else "advise.p11_unclear"
        yield Advice("P11", "answered" if clear else "not answered", key, values, trials)


def too_many_values(study: Study) -> Iterator[Advice]:
    """P12: how many values of the optimizer so many trials can search."""
    study = study.searching
    own = [key for key in study.searched if key.startswith("training.")]
    if not own:
        return
    n = len(study.points_of(study.trials)) if len(study.trials) > 1 else 1
    known = {key: OPTIMIZER.get(key, 10) for key in own}
    too_early = [key for key, least in known.items() if n < least]
    values = {"n": n, "keys": ", ".join(own), "early": ", ".join(too_early)}
    others = len([key for key in own if key not in OPTIMIZER])
    if too_early or (n < 10 and others > 1):
        yield Advice("P12", "against", "advise.p12_many", values | {"early": ", ".join(too_early or own)})
    else:
        yield Advice("P12", "answered", "advise.p12_fits", values)


def sampler(study: Study) -> Iterator[Advice]:
    """P13: exploration is drawn evenly, quasi-random or on a grid, and not by what came out before."""
    study = study.searching
    if len(study.trials) < VALUES or not study.searched:
        return
    named = study.facts.get("sampler")
    values = {"sampler": str(named)}
    if named in ("grid", "sobol"):
        yield Advice("P13", "answered", "advise.p13_even", values)
    elif named is not None:
        yield Advice("P13", "not answered", "advise.p13_adaptive", values)
    elif _is_grid(study):
        yield Advice("P13", "answered", "advise.p13_grid", values)
    else:
        yield Advice("P13", "not answered", "advise.p13_unknown", values)


def _is_grid(study: Study) -> bool:
    axes = [sorted({str(trial.settings[key]) for trial in study.trials}) for key in study.searched]
    cells = {tuple(str(trial.settings[key]) for key in study.searched) for trial in study.trials}
    return math.prod(map(len, axes)) < 10_000 and cells == set(product(*axes))


def luck(study: Study) -> Iterator[Advice]:
    """P14: the best beside what seeds differ by."""
    study = study.deciding
    if len(study.judged) < 2:
        return
    if any("training.seed" not in trial.settings for trial in study.judged):
        unknown = [trial for trial in study.judged if "training.seed" not in trial.settings]
        yield Advice("P14", "not answered", "advise.p14_unknown", {}, names(unknown))
        return
    if not study.rankable:
        sentence = study.known.findings[0] if study.known.findings else None
        reason = Phrase(sentence.key, sentence.values) if sentence else Phrase("advise.unranked")
        yield Advice("P14", "not answered", "advise.p14_unranked", {"why": reason})
        return
    if len(study.points) < 2:
        values = {"n": len(study.judged), "percent": 100 * study.sigma / max(abs(study.points[0].mean), 1e-12)}
        yield Advice("P14", "answered", "advise.p14_one_point", values, names(study.judged))
        return
    best, second = study.points[0], study.points[1]
    level = max(abs(best.mean), 1e-12)
    values = {"best": study.letters(best.trials), "second": study.letters(second.trials), "metric": study.metric}
    values |= {"gap": 100 * (second.mean - best.mean) / level, "sigma": 100 * study.sigma / level, "n": study.repeats}
    if len(study.best_set) == 1 and study.seeds_known:
        yield Advice("P14", "answered", "advise.p14_ahead", values, names([*best.trials, *second.trials]))
        return
    if len(study.best_set) == 1:  # what is assumed of seeds has to be measured before anything is adopted
        step = seeds_again(study, [best, second])
        trials = names([*best.trials, *second.trials])
        yield Advice("P14", "not answered", "advise.p14_ahead_assumed", values, trials, step)
        return
    tied = [trial for point in study.best_set for trial in point.trials]
    key = "advise.p14_inside" if study.seeds_known else "advise.p14_inside_assumed"
    step = seeds_again(study, study.best_set, seeds=2)
    yield Advice("P14", "not answered", key, values | {"tied": study.letters(tied)}, names(tied), step)


RULES = {"P2": edge, "P9": batch, "P11": isolated, "P12": too_many_values, "P13": sampler, "P14": luck}
