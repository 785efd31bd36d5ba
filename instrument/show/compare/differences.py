"""Which settings and surroundings are not the same, and what follows from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...judge.explain.finding import Finding
from ...read.history import History
from ..page.people import UNKNOWN, number, setting
from .words import listed

# They change where and how often something is written, and no weight.
HARMLESS = (
    "training.output_dir", "training.run_name", "training.logging_steps", "training.report_to",
    "training.save_strategy", "training.save_steps", "training.save_total_limit", "training.eval_strategy",
    "training.eval_steps", "training.per_device_eval_batch_size", "training.on_write_error", "training.max_hours",
    "data.cache",
)  # fmt: skip
HARMLESS_SECTIONS = ("instrument.", "environment.")
# What the learning rate of a step follows from.
SCHEDULE = (
    "training.learning_rate", "training.lr_scheduler_type", "training.warmup_steps", "training.warmup_ratio",
    "training.max_steps", "training.num_train_epochs",
)  # fmt: skip
BATCH = ("training.per_device_train_batch_size", "training.gradient_accumulation_steps", "data.packing")
ORDER = ("training.seed", "training.data_seed", "data.limit", "data.train", "training.group_by_length", *BATCH)
# Of env.json: what a run ran on.
EVALUATED = ("data.eval", "data.eval_limit", "training.metric_for_best_model", "training.greater_is_better")
"""They change no weight, but what the evaluations mean."""
SEEDS = ("training.seed", "training.data_seed")
SURROUNDINGS = ("versions", "python", "platform", "cpu", "threads", "gpus", "cuda", "processes", "data_fingerprint")


@dataclass(frozen=True)
class Difference:
    """A key that is not the same in every run, with each run's value as text."""

    key: str
    values: list[str]

    @property
    def harmless(self) -> bool:
        return self.key in HARMLESS or self.key.startswith(HARMLESS_SECTIONS)


def differences(histories: Sequence[History]) -> list[Difference]:
    """Settings first, then surroundings; those that weigh before those that change no weight."""
    flats = [_flat(history) for history in histories]
    keys = list(dict.fromkeys(key for flat in flats for key in flat))
    if not told(histories):  # a log does not say: what it lacks is unknown, and no difference
        keys = [key for key in keys if all(key in flat for flat in flats)]
    found = []
    for key in keys:
        values = [setting(flat.get(key)) for flat in flats]
        if len(set(values)) > 1:
            found.append(Difference(key, values))
    return sorted(found, key=lambda difference: difference.harmless)


def _flat(history: History) -> dict[str, Any]:
    flat = {f"{section}.{key}": value for section, own in history.config.items() for key, value in own.items()}
    for key in SURROUNDINGS:
        if key not in history.env:
            continue
        value = history.env[key]
        items = value.items() if isinstance(value, dict) else [("", value)]
        flat |= {f"environment.{key}.{name}".rstrip("."): item for name, item in items}
    return flat


def told(histories: Sequence[History]) -> bool:
    """Whether all of them are run folders of lora-train, which record every setting."""
    return all(history.kind == "run" and not history.attached for history in histories)


def weighty(differing: Sequence[Difference]) -> list[Difference]:
    """Those that can change a weight: settings, and the data."""
    changing = [d for d in differing if not d.harmless and d.key not in EVALUATED]
    return changing + [d for d in differing if d.key == "environment.data_fingerprint"]


def repeated(histories: Sequence[History]) -> list[list[int]]:
    """Indices of the runs of each setting, where all settings have repeats that differ in the seed; else nothing."""
    if not told(histories):
        return []
    groups: dict[str, list[int]] = {}
    for at, history in enumerate(histories):
        flat = {f"{section}.{key}": value for section, own in history.config.items() for key, value in own.items()}
        weighs = [key for key in flat if key not in (*SEEDS, *HARMLESS) and not key.startswith(HARMLESS_SECTIONS)]
        groups.setdefault(repr(sorted((key, repr(flat[key])) for key in weighs)), []).append(at)
    found = list(groups.values())
    return found if all(len(own) > 1 for own in found) else []


def consequences(histories: Sequence[History], names: Sequence[str], differing: Sequence[Difference]) -> list[Finding]:
    """What follows: several changes at once, another slope of the learning rate, other batches, another order."""
    changed = {difference.key for difference in weighty(differing)}
    settings = sorted(changed - {"environment.data_fingerprint"})
    if repeated(histories):
        settings = [key for key in settings if key not in SEEDS]
    found = []
    if len(settings) > 1:
        found.append(_note("compare.several", "watch", n=len(settings), keys=", ".join(settings)))
    elif not changed and told(histories):
        found.append(_note("compare.same_settings", "note"))
    if rate := _rate_parts(histories):
        step, values = rate
        cause = ", ".join(key for key in (*SCHEDULE, *BATCH, "data.limit", "data.train") if key in changed) or UNKNOWN
        rates = listed(names, [number(value, 3) for value in values])
        if not told(histories):
            found.append(_note("compare.rates_part", "watch", step=step, listed=rates))
        else:
            key = "compare.slope" if not changed & set(SCHEDULE[:2]) else "compare.other_rate"
            found.append(_note(key, "watch", step=step, listed=rates, cause=cause))
    if changed & set(BATCH):
        rows = listed(names, [history.rows_per_step for history in histories])
        found.append(_note(_batches(histories), "watch", listed=rows))
    if (order := sorted(changed & set(ORDER))) or "environment.data_fingerprint" in changed:
        found.append(_note("compare.order", "note", cause=", ".join(order) or "data"))
    if any(d.key == "training.logging_steps" for d in differing):
        found.append(_interval(histories, names))
    if surroundings := [d.key.removeprefix("environment.") for d in differing if d.key.startswith("environment.")]:
        other = [key for key in surroundings if key != "data_fingerprint"]
        if other:
            found.append(_note("compare.surroundings", "note", keys=", ".join(other[:6])))
    return found


def _batches(histories: Sequence[History]) -> str:
    """The sentence by what runs with other batches lie over each other on: tokens, else epochs, else nothing."""
    for column, key in (("tokens", "compare.batches"), ("epoch", "compare.batches_epoch")):
        if all(np.isfinite(history.column(column)).any() for history in histories):
            return key
    return "compare.batches_steps"


def _interval(histories: Sequence[History], names: Sequence[str]) -> Finding:
    if all(history.coarse == 1 and not history.stock for history in histories):
        return _note("compare.interval", "note")
    each = listed(names, [f"{history.coarse:,}" for history in histories])
    return _note("compare.interval_lines", "note", listed=each)


def _note(key: str, verdict: str, **values: Any) -> Finding:
    return Finding("compare", verdict, key, values)


def _rate_parts(histories: Sequence[History]) -> tuple[int, list[float]] | None:
    """The first step at which the learning rates are not the same, and where they differ most."""
    rates = []
    for history in histories:
        step, rate = history.finite("learning_rate")
        rates.append(dict(zip(step.astype(int).tolist(), rate.tolist(), strict=True)))
    common = sorted(set.intersection(*map(set, rates)))
    for step in common:
        values = [rate[step] for rate in rates]
        if max(values) - min(values) > 1e-6 * max(np.abs(values)):
            return step, values
    return None
