"""The first step and site at which two runs are no longer the same, bit for bit as recorded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...judge.explain.finding import Finding
from ...read.history import History
from .differences import Difference, told, weighty

SCALARS = ("loss", "grad_norm", "learning_rate", "loss_scale")
# Statistics are compared from some steps before the scalars part: a site differs before the loss shows it.
LOOK_BACK = 20
COLUMNS = ["sumsq", "absmax"]


def parting(one: History, other: History, name: str, other_name: str, differing: Sequence[Difference]) -> list[Finding]:
    """Where two runs part; of runs that were meant to be the same the site too, and what that means."""
    if one.coarse != other.coarse:  # a mean of several steps is not a step
        return []
    steps, same = _common(one, other)
    if not len(steps):
        return []
    values = {"one": name, "other": other_name, "n": len(steps)}
    if same.all():
        key = "compare.identical"
        if found := _site(one, other, int(steps[-1])):
            key, values = "compare.identical_losses", values | {"step": found[0], "site": found[1]}
        return [Finding("compare", "healthy", key, values)]
    step = int(steps[int(np.argmin(same))])
    values["step"] = step
    if weighty(differing) or not told((one, other)):
        return [Finding("compare", "note", "compare.parts", values)]
    if found := _site(one, other, step):
        values |= {"site_step": found[0], "site": found[1]}
        return [Finding("compare", "watch", "compare.parts_unasked_site", values)]
    return [Finding("compare", "watch", "compare.parts_unasked", values)]


def _common(one: History, other: History) -> tuple[np.ndarray, np.ndarray]:
    """The steps both have, and whether every scalar is the same there; NaN is the same as NaN."""
    known = [name for name in SCALARS if all(history.steps[name].notna().any() for history in (one, other))]
    frames = [history.steps.set_index("step")[known] for history in (one, other)]
    steps = frames[0].index.intersection(frames[1].index)
    a, b = (frame.loc[steps].to_numpy("float64") for frame in frames)
    return steps.to_numpy(), ((a == b) | (np.isnan(a) & np.isnan(b))).all(axis=1)


def _site(one: History, other: History, step: int) -> tuple[int, str] | None:
    """The first step up to that one, and in it the first site in execution order, whose statistics differ."""
    steps = range(max(1, step - LOOK_BACK), step + 1)
    frames = [history.stats("", COLUMNS, steps) for history in (one, other)]
    if frames[0] is None or frames[1] is None:
        return None
    named = (frame.assign(site=frame["site"].astype(str)) for frame in frames if frame is not None)
    a, b = (frame.set_index(["step", "site"])[COLUMNS] for frame in named)
    b = b.reindex(a.index)
    x, y = a.to_numpy("float64"), b.to_numpy("float64")
    differs = ~((x == y) | (np.isnan(x) & np.isnan(y))).all(axis=1)
    if not differs.any():
        return None
    at: Any = a.index[int(np.argmax(differs))]
    return int(at[0]), str(at[1])
