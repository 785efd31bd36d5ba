"""Why trials died and whether the best one stands beside them (P15), how stable a higher rate is (P16), what to clip
at (P17), and how much the end of a run wobbles (P18).

Source of the rules: the tuning playbook, "Identifying bad search space boundaries" and "How can optimization failures
be debugged and mitigated?".
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from ...judge.explain.finding import Phrase, median
from ...judge.explain.rules.evaluation import evaluated_rows
from ...judge.explain.rules.norms import CLEAR, micro_batches
from ...judge.noise import FEW, noise_of
from ...show.compare.ranking import SEED
from ..advice import Advice
from ..study import Study
from ..trial import Trial
from .common import names, shown, step_with
from .length import Joined
from .search import RATE, as_good, profile

# Playbook: 500 steps at twice the best rate, evaluated often.
TWICE, MINI = 2.0, 500
NEARLY_TWICE = 1.9
UNSTABLE = (
    "explain.loss_turned", "explain.exploding", "explain.loss_rose", "explain.jagged_more", "explain.scale_restless",
)  # fmt: skip
CLIP_AT, TOO_MANY = 0.9, 0.5
# Of steps whose norms are alike: fewer say nothing of a share.
NORMS = 20
# An end of the schedule above this share of its peak has not decayed.
DECAYED = 0.1
CAUSES = {
    "explain.loss_blew_up": "advise.died_diverged",
    "explain.loss_blew_up_rate": "advise.died_diverged",
    "explain.loss_rose": "advise.died_diverged",
    "explain.exploding": "advise.died_diverged",
    "explain.gradient_never_finite": "advise.died_gradient",
    "explain.gradient_none_scale": "advise.died_gradient",
    "explain.gradient_none_since": "advise.died_gradient",
}
KINDS = {
    "forward_overflow": "advise.died_forward", "backward_overflow": "advise.died_backward",
    "scale_collapse": "advise.died_backward", "scale_underflow": "advise.died_backward",
    "divergence": "advise.died_diverged", "bad_weight": "advise.died_weight", "dead_adapter": "advise.died_weight",
}  # fmt: skip


def cause(trial: Trial) -> Phrase:
    """Why a trial died, as far as it is known."""
    values = {"trial": trial.letter, "step": trial.history.last_step, "module": "-"}
    if trial.history.incidents:
        last = trial.history.incidents[-1]
        values |= {"step": last["step"], "module": str(last.get("module") or "-")}
        return Phrase(KINDS.get(last["kind"], "advise.died_other"), values)
    death = trial.death
    return Phrase(CAUSES.get(death.key, "advise.died_nonfinite") if death else "advise.died_other", values)


def deaths(study: Study) -> Iterator[Advice]:
    """P15: trials that died count; where all above a rate did and the best stands at that border, it is instability."""
    if study.unrecorded:
        values = {"n": len(study.unrecorded), "listed": ", ".join(study.unrecorded[:6])}
        yield Advice("P15", "answered", "advise.p15_unrecorded", values, study.unrecorded)
    dead = [trial for trial in study.trials if trial.death is not None]
    if not dead:
        if not study.unrecorded:
            yield Advice("P15", "answered", "advise.p15_none", {"n": len(study.trials)})
        return
    listed = Joined("advise.joined", {"parts": tuple(cause(trial) for trial in dead[:6])})
    values = {"n": len(dead), "of": len(study.trials), "listed": listed, "rate": "-"}
    alive = [rate for trial in study.judged if (rate := trial.number(RATE)) is not None]
    died = [rate for trial in dead if (rate := trial.number(RATE)) is not None]
    above = [rate for rate in died if alive and rate > max(alive)]
    if not above or RATE not in study.varied or not study.rankable:
        key = "advise.p15_all" if not study.alive else "advise.p15_some"
        yield Advice("P15", "answered" if study.alive else "against", key, values, names(dead))
        return
    points = profile(study, RATE)
    kept = as_good(study, points)
    values |= {"rate": shown(min(above)), "best": shown(min(points, key=lambda value: points[value].mean))}
    if kept == [max(points)]:
        trial = points[max(points)].trials[0]
        warmup = max(10, round(0.05 * trial.horizon))
        step = step_with(trial, {"training.warmup_steps": warmup, RATE: min(above)})
        yield Advice("P15", "against", "advise.p15_border", values, names([*points[max(points)].trials, *dead]), step)
    elif max(points) in kept:
        yield Advice("P15", "not answered", "advise.p15_unclear", values, names(dead))
    else:
        yield Advice("P15", "answered", "advise.p15_above", values, names(dead))


def higher_rate(study: Study) -> Iterator[Advice]:
    """P16: whether a rate twice the best one is stable, step by step."""
    best = study.best
    if best is None or (rate := best.trials[0].number(RATE)) is None or rate <= 0:
        return
    above = [trial for trial in study.trials if (trial.number(RATE) or 0) >= NEARLY_TWICE * rate]
    values = {"rate": shown(rate), "twice": shown(TWICE * rate), "trial": best.trials[0].letter}
    trial = best.trials[0]
    if not above:
        steps = min(MINI, trial.horizon)
        settings = {RATE: float(f"{TWICE * rate:.3g}"), "training.max_steps": steps}
        yield Advice(
            "P16", "not answered", "advise.p16_none", values, names([trial]), step_with(trial, settings, steps)
        )
        return
    nearest = min(trial.number(RATE) or math.inf for trial in above)
    own = [trial for trial in above if trial.number(RATE) == nearest]
    bad = [trial for trial in own if trial.death is not None or _unstable(trial)]
    values |= {"names": study.letters(own), "above": shown(nearest), "n": len(bad), "of": len(own)}
    if 2 * len(bad) > len(own):
        warmup = max(10, round(0.05 * trial.horizon))
        step = step_with(own[0], {"training.warmup_steps": warmup})
        yield Advice("P16", "against", "advise.p16_unstable", values, names(own), step)
    elif bad:
        yield Advice("P16", "not answered", "advise.p16_unclear", values, names(own))
    else:
        yield Advice("P16", "answered", "advise.p16_stable", values, names(own))


def _unstable(trial: Trial) -> bool:
    return any(finding.key in UNSTABLE and finding.verdict in ("watch", "wrong") for finding in trial.findings)


def clip(study: Study) -> Iterator[Advice]:
    """P17: where to clip, by the norms before clipping; with more than half shortened, clipping sets the step."""
    trial = study.points[0].trials[0] if study.best is not None else (study.alive or study.trials)[0]
    _, norm = trial.history.finite("grad_norm")
    if len(norm) < NORMS:
        yield Advice("P17", "not answered", "advise.p17_no_norms", {"n": len(norm), "least": NORMS}, names([trial]))
        return
    limit, at = trial.number("training.max_grad_norm"), float(np.quantile(norm, CLIP_AT))
    values = {"trial": trial.letter, "at": at, "n": len(norm), "limit": limit or 0.0, "percent": 0.0}
    if limit is None:
        yield Advice("P17", "answered", "advise.p17_value", values, names([trial]))
        return
    share = float(np.mean(norm > limit)) if limit > 0 else 0.0
    values |= {"percent": 100 * share}
    error = 2 * math.sqrt(max(share * (1 - share), 1 / len(norm)) / len(norm))
    if share - error > TOO_MANY:
        step = step_with(trial, {"training.max_grad_norm": float(f"{at:.2g}")})
        yield Advice("P17", "against", "advise.p17_always", values, names([trial]), step)
    elif share + error < TOO_MANY:
        yield Advice("P17", "answered", "advise.p17_fine", values, names([trial]))
    else:
        yield Advice("P17", "not answered", "advise.p17_unclear", values, names([trial]))


def late_wobble(study: Study) -> Iterator[Advice]:
    """P18: evaluations that wobble as much as seeds differ hide what is compared; and what makes them wobble."""
    parts: list[tuple[float, int]] = []
    for trial in study.judged:
        values = trial.evaluations[1]
        late = values[len(values) // 2 :]
        if len(late) >= FEW:
            noise = noise_of(late, 0.0)
            parts.append((noise.sigma / (max(abs(float(late.mean())), 1e-12) if study.lower else 1.0), len(late)))
    if not parts:
        yield Advice("P18", "not answered", "advise.p18_few", {"least": 2 * FEW}, names(study.trials))
        return
    n = sum(count for _, count in parts)
    wobble = math.sqrt(sum(count * size**2 for size, count in parts) / n)
    error = 2 / math.sqrt(2 * n) * math.sqrt(2)  # of differences, which repeat each value, twice as uncertain
    trial = study.judged[0]
    why, step = _why(study, trial, wobble)
    values = {"wobble": 100 * wobble, "limit": 100 * SEED, "n": n, "why": why}
    if wobble * (1 - error) > SEED:
        yield Advice("P18", "against", "advise.p18_large", values, names(study.judged), step)
    elif wobble * (1 + error) < SEED:
        yield Advice("P18", "answered", "advise.p18_small", values, names(study.judged))
    else:
        yield Advice("P18", "not answered", "advise.p18_unclear", values, names(study.judged))


def _why(study: Study, trial: Trial, wobble: float):
    """What of the playbook's causes the numbers name: the rate at the end, the size of the evaluation, the batch."""
    _, rates = trial.history.finite("learning_rate")
    if len(rates) > 1 and rates[-1] > DECAYED * rates.max():
        step = step_with(trial, {"training.lr_scheduler_type": "cosine"})
        return Phrase("advise.why_rate", {"last": float(rates[-1]), "peak": float(rates.max())}), step
    rows = evaluated_rows(trial.history)
    if rows and not study.lower:
        share = float(np.clip(-median(trial.evaluations[1]), 0, 1))
        counted = math.sqrt(share * (1 - share) / rows)
        if counted > wobble / 2:
            return Phrase("advise.why_rows", {"rows": rows, "error": 100 * counted}), None
    micro = micro_batches(trial.history)
    if micro is None or not micro.is_seen:
        return Phrase("advise.why_batch"), None
    share = micro.noise(slice(len(micro.row) // 2, None))
    values = {"rows": micro.rows, "percent": 100 * share}
    return Phrase("advise.why_noise" if share > CLEAR else "advise.why_no_noise", values), None


RULES = {"P15": deaths, "P16": higher_rate, "P17": clip, "P18": late_wobble}
