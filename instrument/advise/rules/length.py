"""From this run to a longer one: which checkpoint to take (P5), what carries over (P7), and how to lengthen (P8).

Source of the rules: the tuning playbook, "Saving checkpoints and retrospectively selecting the best checkpoint" and
"Deciding how long to train for when training is compute-bound".
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from ...judge.explain.finding import Phrase
from ..advice import Advice, Step
from ..curves import LEAST, ending, region, usable
from ..study import Study
from ..trial import Trial
from .budget import ALWAYS
from .common import cost, names, step_with

# How likely a choice that was made on a short run holds on a long one.
CARRIES = {
    "training.warmup_steps": "advise.carries_very",
    "training.warmup_ratio": "advise.carries_very",
    "lora.lora_alpha": "advise.carries_likely",
    "lora.r": "advise.carries_likely",
    "lora.target_modules": "advise.carries_likely",
    "training.optim": "advise.carries_perhaps",
    "training.learning_rate": "advise.carries_perhaps",
    "training.adam_beta1": "advise.carries_perhaps",
    "training.adam_beta2": "advise.carries_perhaps",
    "training.adam_epsilon": "advise.carries_perhaps",
    "training.weight_decay": "advise.carries_perhaps",
    "lora.lora_dropout": "advise.carries_perhaps",
    "training.lr_scheduler_type": "advise.carries_not",
    "training.lr_scheduler_kwargs": "advise.carries_not",
}
LEVELS = ("advise.carries_very", "advise.carries_likely", "advise.carries_perhaps", "advise.carries_not")
KEEP = 3


def checkpoint(study: Study) -> Iterator[Advice]:
    """P5: of the checkpoints that are there the one nearest to the best step, by the smoothed evaluation."""
    trial = study.points[0].trials[0] if study.best is not None else (study.judged or [None])[0]
    if trial is None:
        yield Advice("P5", "not answered", "advise.p5_no_evaluation", {}, names(study.trials))
        return
    kept = trial.best_steps
    values = {"trial": trial.letter, "step": trial.best_step, "low": int(kept[0]), "high": int(kept[-1])}
    values |= {"n": len(trial.evaluations[0]), "level": study.shown(trial.level), "metric": study.metric}
    values |= {"error": 100 * trial.smoothed[2] / max(abs(trial.level), 1e-12)}
    there = _checkpoints(trial)
    if len(trial.evaluations[0]) < 2 or not there:
        yield Advice("P5", "not answered", "advise.p5_none_there", values, names([trial]))
        return
    inside = [step for step in there if step in set(kept.astype(int).tolist()) or kept[0] <= step <= kept[-1]]
    if inside:
        nearest = min(inside, key=lambda step: (abs(step - trial.best_step), step))
        folder = shlex.quote(str(_folder(trial) / f"checkpoint-{nearest}"))
        ours = trial.history.kind == "run" and not trial.history.attached
        step = Step((f"lora-train merge {folder}" if ours else folder,))
        yield Advice("P5", "answered", "advise.p5_there", values | {"nearest": nearest}, names([trial]), step)
        return
    values |= {"there": ", ".join(map(str, there[:6]))}
    yield Advice(
        "P5", "against", "advise.p5_lost", values, names([trial]), step_with(trial, {"training.keep_best": KEEP})
    )


def _folder(trial: Trial) -> Path:
    path = Path(trial.folder)
    return path if path.is_dir() else path.parent


def _checkpoints(trial: Trial) -> list[int]:
    found = (path.name.removeprefix("checkpoint-") for path in _folder(trial).glob("checkpoint-*"))
    return sorted(int(name) for name in found if name.isdigit())


def carries_over(study: Study) -> Iterator[Advice]:
    """P7: what was found on short runs, by how likely it holds on a long one; checked where both lengths are there."""
    keys = [key for key in study.searched if key in CARRIES]
    lengths = sorted({trial.horizon for trial in study.trials})
    if not keys or len(study.judged) < 2:
        return
    groups = {level: [key for key in keys if CARRIES[key] == level] for level in LEVELS}
    table = [Phrase(level, {"keys": ", ".join(own)}) for level, own in groups.items() if own]
    values = {"table": Joined("advise.joined", {"parts": tuple(table)}), "steps": lengths[0], "most": lengths[-1]}
    if len(lengths) < 2 or not study.rankable:
        yield Advice("P7", "not answered", "advise.p7_one_length", values, names(study.judged))
        return
    held = [_holds(study, key, lengths[0], lengths[-1]) for key in keys]
    if None in held:
        yield Advice("P7", "not answered", "advise.p7_unclear", values, names(study.judged))
    else:
        lost = [key for key, kept in zip(keys, held, strict=True) if not kept]
        key = "advise.p7_lost" if lost else "advise.p7_held"
        verdict = "against" if lost else "answered"
        yield Advice("P7", verdict, key, values | {"lost": ", ".join(lost)}, names(study.judged))


class Joined(Phrase):
    """Phrases one after the other."""

    def sentence(self, lang: str) -> str:
        return "; ".join(part.sentence(lang) for part in self.values["parts"])


def _holds(study: Study, key: str, short: int, long: int) -> bool | None:
    """Whether the best value at one length is among the best at the other; None where noise hides either."""
    best = []
    for horizon in (short, long):
        own = [point for point in study.points if point.trials[0].horizon == horizon]
        values: dict = {}
        for point in own:
            values.setdefault(str(point.settings[key]), point)
        if len(values) < 2:
            return None
        kept = {value for value, point in values.items() if not study.apart(own[0], point)}
        best.append((kept, set(values)))
    (kept, tried), (later, tried_later) = best
    if len(kept) > 1 or len(later) > 1 or tried != tried_later:
        return None
    return kept == later


def lengthen(study: Study) -> Iterator[Advice]:
    """P8: linear keeps the length of its decay and gets a longer constant part, cosine is stretched at its rate."""
    trial = study.points[0].trials[0] if study.best is not None else (study.judged or study.trials)[0]
    trials = usable(study)
    found = region(trials, study.sigma) if len(trials) >= ALWAYS else None
    end = ending(trials, study.sigma) if trials else None
    wanted = (found is not None and found.where == "late") or (end is not None and end.kind == "falling")
    values = {"trial": trial.letter, "schedule": str(trial.schedule), "steps": trial.horizon, "least": LEAST}
    if trial.schedule is None:
        yield Advice("P8", "not answered", "advise.p8_unknown", values, names([trial]))
        return
    key = _LENGTHENED.get(trial.schedule, "advise.p8_other")
    step = None
    if wanted and trial.history.kind == "run" and not trial.history.attached:
        longer = 2 * trial.horizon
        per_step = trial.seconds / max(trial.history.last_step, 1)
        folder = shlex.quote(trial.folder.rstrip("/"))
        step = Step((f"lora-train lengthen {folder} --max-steps {longer}",), cost(longer, 1, per_step))
    yield Advice("P8", "answered", key, values, names([trial]), step)


_LENGTHENED = {
    "linear": "advise.p8_linear",
    "cosine": "advise.p8_cosine",
    "constant": "advise.p8_constant",
    "constant_with_warmup": "advise.p8_constant",
    "warmup_stable_decay": "advise.p8_wsd",
}

RULES = {"P5": checkpoint, "P7": carries_over, "P8": lengthen}
