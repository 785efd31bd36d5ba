"""Which settings and surroundings are not the same, and what follows from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...judge.explain.finding import Finding
from ...read.history import History
from ..page.people import setting

# They change where and how often something is written, and no weight.
HARMLESS = (
    "training.output_dir", "training.run_name", "training.logging_steps", "training.report_to",
    "training.save_strategy", "training.save_steps", "training.save_total_limit", "training.eval_strategy",
    "training.eval_steps", "training.per_device_eval_batch_size", "training.on_write_error", "training.max_hours",
    "data.cache", "data.eval", "data.eval_limit",
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
SURROUNDINGS = ("versions", "python", "platform", "cpu", "threads", "gpus", "cuda", "processes", "data_fingerprint")
MISSING = "-"


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
        values = [_text(flat.get(key, MISSING)) for flat in flats]
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


def _text(value: Any) -> str:
    return MISSING if value is None else setting(value)


def told(histories: Sequence[History]) -> bool:
    """Whether all of them are run folders of lora-train, which record every setting."""
    return all(history.kind == "run" and not history.attached for history in histories)


def weighty(differing: Sequence[Difference]) -> list[Difference]:
    """Those that can change a weight: settings, and the data."""
    return [d for d in differing if not d.harmless or d.key == "environment.data_fingerprint"]


def consequences(histories: Sequence[History], names: Sequence[str], differing: Sequence[Difference]) -> list[Finding]:
    """What follows: several changes at once, another slope of the learning rate, other batches, another order."""
    changed = {difference.key for difference in weighty(differing)}
    settings = sorted(changed - {"environment.data_fingerprint"})
    found = []
    if len(settings) > 1:
        found.append(_note("compare.several", "watch", n=len(settings), keys=", ".join(settings)))
    elif not changed and told(histories):
        found.append(_note("compare.same_settings", "note"))
    if rate := _rate_parts(histories):
        step, values = rate
        cause = ", ".join(key for key in (*SCHEDULE, *BATCH, "data.limit", "data.train") if key in changed) or MISSING
        listed = ", ".join(f"{name} {value:.3g}" for name, value in zip(names, values, strict=True))
        if not told(histories):
            found.append(_note("compare.rates_part", "watch", step=step, listed=listed))
        else:
            key = "compare.slope" if not changed & set(SCHEDULE[:2]) else "compare.other_rate"
            found.append(_note(key, "watch", step=step, listed=listed, cause=cause))
    if changed & set(BATCH):
        rows = [history.rows_per_step for history in histories]
        listed = ", ".join(f"{name} {n}" for name, n in zip(names, rows, strict=True))
        found.append(_note("compare.batches", "watch", listed=listed))
    if (order := sorted(changed & set(ORDER))) or "environment.data_fingerprint" in changed:
        found.append(_note("compare.order", "note", cause=", ".join(order) or "data"))
    if any(d.key == "training.logging_steps" for d in differing):
        found.append(_note("compare.interval", "note"))
    if surroundings := [d.key.removeprefix("environment.") for d in differing if d.key.startswith("environment.")]:
        other = [key for key in surroundings if key != "data_fingerprint"]
        if other:
            found.append(_note("compare.surroundings", "note", keys=", ".join(other[:6])))
    return found


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
