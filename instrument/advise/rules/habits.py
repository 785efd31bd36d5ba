"""The largest useful batch (P10), overfitting of any trial (P19), and how the evaluations were made (P20).

Source of the rules: the tuning playbook, "Choosing the batch size to minimize training time", "Examining the training
curves" and "Setting up periodic evaluations". On accumulation also arXiv 2507.07101.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from ...judge.explain.finding import Phrase, median
from ...judge.explain.rules.evaluation import evaluated_rows
from ...judge.explain.rules.metric import BY_ROW
from ..advice import Advice
from ..study import Study
from ..trial import Trial
from .common import names, step_with

# A larger batch that brings less than this share more tokens a second is no faster.
FASTER = 1.05
OVERFIT = ("explain.overfitting", "explain.rows_overfit", "explain.eval_turned", "explain.rows_turned")
DECIDED = (
    "explain.underfitting", "explain.eval_falling", "explain.eval_flat", "explain.eval_flat_rate",
    "explain.eval_level", "explain.eval_fell", "explain.eval_unmoved",
    "explain.rows_fell", "explain.rows_same", "explain.eval_rose", "explain.rows_rose",
)  # fmt: skip
WORK = ("lora.target_modules", "training.gradient_checkpointing", "training.fp16", "training.bf16", "training.optim")
"""What beside model and data decides the speed of a row."""
# Evaluations of a run below which its best step is a guess, and rows below which a percentage hides counts.
EVALUATIONS, COUNTED = 5, 200


def throughput(study: Study) -> Iterator[Advice]:
    """P10: the largest batch of a device that is still faster; accumulation makes nothing faster."""
    speeds: dict[float, list[float]] = {}
    # of another model, other rows or another way to compute, another speed says nothing of the batch
    alike = [trial for trial in study.trials if _work(trial) == _work(study.trials[0])]
    for trial in alike:
        size, speed = trial.number("training.per_device_train_batch_size"), _speed(trial)
        if size is not None and math.isfinite(speed):
            speeds.setdefault(size, []).append(speed)
    parts = {trial.number("training.gradient_accumulation_steps") for trial in study.trials} - {None}
    adds = Phrase("advise.accumulates" if parts and max(p or 1 for p in parts) > 1 else "advise.accumulates_not")
    if len(speeds) < 2:
        trial = study.trials[0]
        size = trial.number("training.per_device_train_batch_size")
        steps = min(20, trial.horizon)
        settings = {"training.per_device_train_batch_size": int(2 * size), "training.max_steps": steps} if size else {}
        step = step_with(trial, settings, steps) if size and trial.horizon else None
        values = {"size": f"{size:g}" if size else "?", "adds": adds}
        yield Advice("P10", "not answered", "advise.p10_one", values, names([trial]), step)
        return
    medians = {size: median(own) for size, own in sorted(speeds.items())}
    sizes = list(medians)
    largest = sizes[0]
    for size in sizes[1:]:
        if medians[size] < FASTER * medians[largest]:
            break
        largest = size
    listed = ", ".join(f"{size:g}: {speed:,.4g}" for size, speed in medians.items())
    values = {"listed": listed, "size": f"{largest:g}", "adds": adds}
    if largest == sizes[-1]:
        yield Advice("P10", "not answered", "advise.p10_edge", values)
    else:
        yield Advice("P10", "answered", "advise.p10_size", values)


def _work(trial: Trial) -> list[object]:
    keys = [key for key in trial.settings if key.startswith(("model.", "quantization.", "data."))]
    return [str(trial.settings.get(key)) for key in (*sorted(keys), *WORK)]


def _speed(trial: Trial) -> float:
    """Tokens a second, else rows a second."""
    _, speed = trial.history.finite("tokens_per_second")
    if len(speed):
        return median(speed)
    return float(trial.history.summary.get("train_samples_per_second", math.nan))


def overfitting(study: Study) -> Iterator[Advice]:
    """P19: an evaluation loss that rises while the training loss falls, in the best trial or in any."""
    if not study.judged:
        yield Advice("P19", "not answered", "advise.p19_no_evaluation", {}, names(study.trials))
        return
    bad = [trial for trial in study.judged if any(finding.key in OVERFIT for finding in trial.findings)]
    open_ = [trial for trial in study.judged if trial not in bad and not _decided(trial)]
    values = {"n": len(bad), "of": len(study.judged), "names": study.letters(bad), "open": study.letters(open_)}
    if bad:
        best = study.points[0].trials if study.best is not None else []
        key = "advise.p19_best" if any(trial in best for trial in bad) else "advise.p19_some"
        step = step_with(bad[0], {"training.load_best_model_at_end": True, "training.keep_best": 3})
        yield Advice("P19", "against", key, values, names(bad), step)
    elif open_:
        yield Advice("P19", "not answered", "advise.p19_open", values, names(open_))
    else:
        yield Advice("P19", "answered", "advise.p19_none", values, names(study.judged))


def _decided(trial: Trial) -> bool:
    return any(finding.key in DECIDED for finding in trial.findings)


def evaluating(study: Study) -> Iterator[Advice]:
    """P20: evaluations at intervals of steps, in batches no smaller than training's, and counts where rows are few."""
    trial = study.points[0].trials[0] if study.best is not None else study.trials[0]
    train, own = (trial.number(f"training.per_device_{name}_batch_size") for name in ("train", "eval"))
    n = len(trial.history.evals)
    rows = evaluated_rows(trial.history)
    values = {"n": n, "train": f"{train or 0:g}", "eval": f"{own or 0:g}", "rows": rows or 0, "least": EVALUATIONS}
    if n and n < EVALUATIONS:
        every = max(1, trial.horizon // (2 * EVALUATIONS))
        step = step_with(trial, {"training.eval_strategy": "steps", "training.eval_steps": every})
        yield Advice("P20", "against", "advise.p20_few", values, names([trial]), step)
    elif train and own and own < train:
        step = step_with(trial, {"training.per_device_eval_batch_size": int(train)})
        yield Advice("P20", "against", "advise.p20_batch", values, names([trial]), step)
    elif n == 0 or train is None or own is None:
        yield Advice("P20", "not answered", "advise.p20_unknown", values, names([trial]))
    elif study.metric == BY_ROW and rows and rows < COUNTED:
        share = float(np.clip(-trial.level, 0, 1))
        values |= {"right": round(share * rows)}
        yield Advice("P20", "answered", "advise.p20_counts", values, names([trial]))
    else:
        yield Advice("P20", "answered", "advise.p20_fine", values, names([trial]))


RULES = {"P10": throughput, "P19": overfitting, "P20": evaluating}
