"""How long a run should be: found by constant rates (P1), the same in a study (P3), too long or too short (P4), and
whether steps are what is missing (P6).

Source of the rules: the tuning playbook, "Determining the number of steps for each training run".
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from ...judge.explain.finding import WINDOW, Phrase, ends, median
from ..advice import Advice
from ..curves import Region, contradicts, ending, region, usable
from ..study import Study
from ..trial import Trial
from .common import names, resumed, shown, step_with, steps_with
from .search import RATE

CONSTANT = ("constant", "constant_with_warmup")
# Nats a token or a row below which a training set is known by heart, as explain has it.
FITTED = 0.1
# Crossings within so much of the fastest are no slower: they scatter by the batch.
AS_FAST = 1.15
# Always and consistently need more than a pair.
ALWAYS = 3
# Constant rates that P1 compares, and by how much they differ.
LEAST, APART = 3, 3.0


def constant_sweep(study: Study) -> Iterator[Advice]:
    """P1: at constant rates and without regularisation, the steps of the fastest trial that fits the training set."""
    trials = [trial for trial in study.trials if _constant(trial)]
    rates = {trial.number(RATE) for trial in trials} - {None}
    if len(rates) < LEAST:
        trial = study.judged[0] if study.judged else study.trials[0]
        settings = {"training.lr_scheduler_type": "constant", "lora.lora_dropout": 0, "training.weight_decay": 0}
        tried = {rate: settings | {RATE: rate} for rate in _rates_around(trial.number(RATE)) if rate not in rates}
        step = steps_with([(trial, own) for own in list(tried.values())[: LEAST - len(rates)]])
        yield Advice("P1", "not answered", "advise.p1_no_sweep", {"n": len(rates), "least": LEAST}, names(trials), step)
        return
    crossed = {rate: crossing([t for t in trials if t.number(RATE) == rate]) for rate in sorted(r for r in rates if r)}
    fitted = {rate: steps for rate, steps in crossed.items() if math.isfinite(steps)}
    if not fitted:
        lowest = min(
            (ends(trial.history.finite("loss")[1])[1] for trial in trials if trial.death is None), default=math.nan
        )
        double = 2 * trials[0].horizon
        first = {rate: trial for trial in reversed(trials) if (rate := trial.number(RATE)) is not None}
        step = steps_with([(first[rate], {"training.max_steps": double}) for rate in sorted(first)], double)
        values = {"threshold": FITTED, "lowest": lowest, "n": len(trials)}
        yield Advice("P1", "not answered", "advise.p1_not_fitted", values, names(trials), step)
        return
    fastest = min(fitted, key=lambda rate: fitted[rate])
    as_fast = [rate for rate, steps in fitted.items() if steps <= AS_FAST * fitted[fastest]]
    winner = next(trial for trial in trials if trial.number(RATE) == fastest)
    values = {"steps": round(fitted[fastest]), "trial": winner.letter, "rate": shown(fastest), "threshold": FITTED}
    alive = [rate for rate in crossed if any(t.number(RATE) == rate and t.death is None for t in trials)]
    if as_fast in ([alive[0]], [alive[-1]]) and fastest in (min(crossed), max(crossed)):
        up = fastest == alive[-1]
        values |= {"side": Phrase("advise.highest" if up else "advise.lowest")}
        further = 3 * fastest if up else fastest / 3
        step = step_with(winner, {RATE: float(f"{further:.2g}")})
        yield Advice("P1", "not answered", "advise.p1_edge", values, names([winner]), step)
        return
    yield Advice("P1", "answered", "advise.p1_guess", values, names([winner]))


def _rates_around(rate: float | None) -> list[float]:
    """A rate, and those above and below it; from LoRA's usual one where none is known."""
    rate = rate or 2e-4
    return [float(f"{rate * factor:.2g}") for factor in (1, APART, 1 / APART, APART**2, 1 / APART**2)]


def _constant(trial: Trial) -> bool:
    regular = (trial.number("lora.lora_dropout") or 0) > 0 or (trial.number("training.weight_decay") or 0) > 0
    return trial.schedule in CONSTANT and not regular


def crossing(trials: list[Trial]) -> float:
    """Steps after which the median training loss of a dozen steps is fitted, of the median trial; inf where none is."""
    found = []
    for trial in trials:
        step, loss = trial.history.finite("loss")
        size = min(WINDOW, max(1, len(loss) // 4))
        if trial.death is not None or len(loss) < size:
            found.append(math.inf)
            continue
        medians = np.median(np.lib.stride_tricks.sliding_window_view(loss, size), axis=1)
        below = np.flatnonzero(medians <= FITTED)
        found.append(float(step[below[0] + size - 1]) if len(below) else math.inf)
    return float(np.median(found)) if found else math.inf


def same_budget(study: Study) -> Iterator[Advice]:
    """P3: the trials of a study have the same number of steps."""
    if len(study.trials) < 2:
        return
    unknown = [trial for trial in study.trials if trial.history.planned is None and not trial.history.finished]
    if unknown:
        yield Advice("P3", "not answered", "advise.p3_unknown", {"names": study.letters(unknown)}, names(unknown))
        return
    if short := study.unfinished:
        values = {"names": study.letters(short), "n": len(short)}
        step = next((step for trial in short if (step := resumed(study, trial))), None)
        yield Advice("P3", "against", "advise.p3_unfinished", values, names(short), step)
        return
    lengths = [trial.horizon for trial in study.trials]
    values = {"steps": min(lengths), "most": max(lengths), "n": len(study.trials)}
    if min(lengths) == max(lengths):
        yield Advice("P3", "answered", "advise.p3_same", values)
        return
    if len(study.rounds) > 1:
        yield Advice("P3", "answered", "advise.p3_rounds", values | {"rounds": len(study.rounds)})
        return
    shortest = [trial for trial in study.trials if trial.horizon == min(lengths)]
    step = steps_with([(trial, {"training.max_steps": max(lengths)}) for trial in shortest], max(lengths))
    yield Advice("P3", "against", "advise.p3_vary", values, names(shortest), step)


def best_step(study: Study) -> Iterator[Advice]:
    """P4: the best step always in the first tenth, or consistently in the last quarter."""
    trials = usable(study)
    if not trials:
        yield Advice("P4", "not answered", "advise.p4_no_course", {}, names(study.trials))
        return
    found = region(trials, study.sigma)
    steps = ", ".join(f"{trial.letter} {trial.best_step:,}" for trial in trials[:8])
    values = {"n": len(trials), "listed": steps, "low": 100 * found.shares[0], "high": 100 * found.shares[1]}
    odd = [trial for trial in trials if contradicts(trial, found.where)]
    if len(trials) < ALWAYS:
        sentence = Phrase(_HINTS[found.where])
        yield Advice(
            "P4", "not answered", "advise.p4_few", values | {"hint": sentence, "always": ALWAYS}, names(trials)
        )
    elif odd:
        yield Advice("P4", "not answered", "advise.p4_mixed", values | {"odd": study.letters(odd)}, names(trials))
    else:
        yield _of_region(found, trials, study, values)


_HINTS = {
    "early": "advise.hint_early", "late": "advise.hint_late", "middle": "advise.hint_middle",
    "unclear": "advise.hint_unclear",
}  # fmt: skip


def _of_region(found: Region, trials: list[Trial], study: Study, values: dict) -> Advice:
    trial = study.points[0].trials[0] if study.best is not None else trials[0]
    horizon = trial.horizon
    if found.where == "early":
        shorter = max(1, round(3 * found.best * horizon))
        step = step_with(trial, {"training.max_steps": shorter}, steps=shorter)
        return Advice("P4", "against", "advise.p4_long", values, names(trials), step)
    if found.where == "late":
        longer = 2 * horizon
        step = step_with(trial, {"training.max_steps": longer}, steps=longer)
        return Advice("P4", "against", "advise.p4_short", values, names(trials), step)
    if found.where == "middle":
        return Advice("P4", "answered", "advise.p4_inside", values, names(trials))
    return Advice("P4", "not answered", "advise.p4_unclear", values, names(trials))


def compute_bound(study: Study) -> Iterator[Advice]:
    """P6: whether the runs still gained at their end, or had long stopped gaining."""
    trials = usable(study)
    found = ending(trials, study.sigma) if trials else None
    if found is None:
        yield Advice("P6", "not answered", "advise.p6_no_course", {}, names(study.trials))
        return
    scale = 100 / max(found.level, 1e-12)
    values = {"gain": scale * found.gain, "error": 2 * scale * found.error, "n": len(trials), "metric": study.metric}
    values |= {"train": Phrase(*_train_gain(trials)), "sigma": scale * study.sigma}
    longer = 2 * max(trial.horizon for trial in trials)
    if found.kind == "falling":
        trial = study.points[0].trials[0] if study.best is not None else trials[0]
        step = step_with(trial, {"training.max_steps": longer}, steps=longer)
        yield Advice("P6", "answered", "advise.p6_bound", values, names(trials), step)
    elif found.kind == "rose":
        yield Advice("P6", "answered", "advise.p6_rose", values | {"gain": -values["gain"]}, names(trials))
    elif found.kind == "flat":
        decays = all((trial.schedule or "linear") not in CONSTANT for trial in trials)
        key = "advise.p6_saturated_decayed" if decays else "advise.p6_saturated"
        yield Advice("P6", "answered", key, values, names(trials))
    else:
        yield Advice("P6", "not answered", "advise.p6_unclear", values, names(trials))


def _train_gain(trials: list[Trial]) -> tuple[str, dict[str, float]]:
    """What the training loss did over the last quarter, in percent; where a log does not say, that."""
    gains = []
    for trial in trials:
        step, loss = trial.history.finite("loss")
        share = step / trial.horizon
        before, end = median(loss[(share > 0.5) & (share <= 0.75)]), median(loss[share > 0.75])
        gains.append(100 * (before - end) / before if before else math.nan)
    gain = median(gains)
    return ("advise.train_gain", {"gain": gain}) if math.isfinite(gain) else ("advise.train_unknown", {})


RULES = {"P1": constant_sweep, "P3": same_budget, "P4": best_step, "P6": compute_bound}
