"""The gradient norm of a whole run in one sentence, and how much of a step is noise of its batch.

Where the rows of a step were recorded, row_noise.py tells direction and noise apart, whatever the rows' lengths. Else
its micro-batches do:

    c_i                                  what micro-batch i adds to a step's gradient: n_i of its N tokens (or labels)
    S = sum |c_i|^2, Q = |sum c_i|^2     micro_sumsq and sumsq of the statistics
    q = sum n_i^2 / N^2                  supervised_tokens_squared of the step; 1 / k where k parts are alike
    C = (Q - S) / (1 - q)                the product of the gradients of two rows: the direction they share
    R = C + m N (S - q Q) / (1 - q) / E N  the square of the gradient of one row of m, of a usual length
    |g_n|^2 = R / n + (1 - 1 / n) C      of n rows, drawn with replacement or without

all of them expectations, estimated by means over steps. Noise and direction are equal at n = (R - C) / C rows
(McCandlish et al., An Empirical Model of Large-Batch Training, 2018, appendix A.1, for parts that are alike). Where the
gradient of a token depends on the length of its row, what that adds to the noise is not seen.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from ....read.history import TRAINED, History
from ...row_noise import group_noise, log_ratio, row_noise
from ..finding import WINDOW, Finding, median
from .gradients import exploding, none_since, vanishing

# Steps whose statistics are read, spread over the run.
MOST_STEPS = 200
# Of the squared norm, what the sites with micro-batches must cover for the whole to be judged by them.
COVERED = 0.9
# A direction that is not so many standard errors from 0 cannot be seen.
SEEN = 2.0
# Shares of noise from which on, and below which, one of the two decides.
NOISY, CLEAR = 0.8, 0.5
# Batches so many times as large are foretold.
TIMES = (0.5, 2, 4, 8)
# A noise scale is told where two standard errors are no more than this share of it.
TOLD = 0.3
# Steps whose rows were recorded module by module, from which on modules are told apart; groups that are named.
FEWEST, SHOWN = 8, 6
# Windows over the run of whose steps another batch's norm is drawn.
WINDOWS = 20


@dataclass(frozen=True)
class Micro:
    """What the micro-batches of steps say, in units of grad_norm^2.

    Attributes:
        rows: of a step.
        there_are: rows of an epoch; None where the log does not say.
        of_one: rows of a micro-batch.
        row, shared: R and C of each step that was read.
        steps: their numbers.
        tokens: supervised tokens of a row on average; None where the rows were not recorded.
    """

    rows: int
    there_are: int | None
    of_one: int
    row: np.ndarray
    shared: np.ndarray
    steps: np.ndarray
    tokens: float | None = None

    def norm(self, rows: int) -> float:
        """Root of the mean square of the gradient norm of so many rows a step, at the same weights."""
        square = float(self._squares(rows).mean())
        return math.sqrt(square if rows == self.rows else max(square, self._least(rows)))

    def reach(self, rows: int) -> tuple[float, float]:
        """Between what that lies with 95% confidence, as the steps scatter."""
        squares = self._squares(rows)
        share = 2 * float(self.row.std(ddof=1)) / float(self.row.mean()) / math.sqrt(len(self.row))
        error = 2 * float(squares.std(ddof=1)) / math.sqrt(len(squares))
        low, high = (
            max(float(squares.mean()) + sign * error, self._least(rows) * max(1 + sign * share, 0.0))
            for sign in (-1, 1)
        )
        return math.sqrt(low), math.sqrt(high)

    def _squares(self, rows: int) -> np.ndarray:
        n = min(rows, self.there_are or rows)
        return self.row / n + (1 - 1 / n) * self.shared

    def _least(self, rows: int) -> float:
        """Where all rows together have no gradient at all: C = -R / (N - 1) of N rows, 0 of endless ones."""
        n = min(rows, self.there_are or rows)
        left = 0.0 if self.there_are is None else (n - 1) / max(self.there_are - 1, 1)
        return max(float(self.row.mean()) / n * (1 - left), 0.0)

    def course(self, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """The same norm over the run: the last steps of at most WINDOWS windows, and the norm of each."""
        n = max(min(len(self.row) // WINDOW, WINDOWS), 1)
        parts = np.array_split(np.arange(len(self.row)), n)
        norms = [replace(self, row=self.row[own], shared=self.shared[own], steps=own).norm(rows) for own in parts]
        return self.steps[[own[-1] for own in parts]], np.array(norms)

    def is_told(self, rows: int) -> bool:
        """Whether that norm is known to TOLD of it."""
        low, high = self.reach(rows)
        return high - low <= 2 * TOLD * self.norm(rows)

    def noise(self, part: slice = slice(None)) -> float:
        """Share of a step's squared norm that is noise, over a part of the steps."""
        row, shared = self.row[part].mean(), self.shared[part].mean()
        own = row / self.rows
        whole = own + (1 - 1 / self.rows) * shared
        return float(min(max((own - shared / self.rows) / whole, 0.0), 1.0)) if whole > 0 else 1.0

    @property
    def is_seen(self) -> bool:
        """Whether a direction that the rows share is told from chance."""
        error = self.shared.std(ddof=1) / math.sqrt(len(self.shared))
        return bool(self.shared.mean() > SEEN * error)

    def scale(self, part: slice = slice(None)) -> tuple[float, float]:
        """Rows at which noise and direction are equal, and the standard error (jackknife over steps)."""
        row, shared = self.row[part], self.shared[part]
        n, noise = len(row), row - shared
        value = float(noise.sum() / shared.sum())
        without = (noise.sum() - noise) / (shared.sum() - shared)
        return value, float(np.sqrt((n - 1) / n * np.square(without - without.mean()).sum()))


def micro_batches(history: History) -> Micro | None:
    """What the parts of a step tell: its rows, else its micro-batches; None where neither was recorded."""
    return _of_rows(history) or _of_micro_batches(history)


def _of_rows(history: History) -> Micro | None:
    """None too where more is trained than the rows' gradients cover."""
    frame = history.run.rows() if history.run is not None else None
    if frame is None or not len(frame) or not frame.attrs["whole"]:
        return None
    step, norm = history.finite("grad_norm")
    found = row_noise(frame, pd.Series(norm, index=step.astype(int)))
    if found is None or len(found.steps) < WINDOW:
        return None
    return Micro(
        found.rows, _rows_of_epoch(history, found.rows), 1, found.row, found.shared, found.steps, found.tokens
    )  # fmt: skip


def _of_micro_batches(history: History) -> Micro | None:
    size = history.number("training.per_device_train_batch_size")
    parts = history.number("training.gradient_accumulation_steps")
    if history.run is None or not size or not parts or parts < 2 or history.number("data.packing"):
        return None
    step, norm = history.finite("grad_norm")
    if history.task in ("seq_cls", "regression"):  # the last step of an epoch may have fewer rows
        finite = np.isfinite(history.column("grad_norm"))
        count = history.column("supervised_tokens")[finite]
        kept = np.isnan(count) | (count == np.nanmax(count, initial=0))
        step, norm = step[kept], norm[kept]
    if len(step) < WINDOW:
        return None
    at = np.unique(np.linspace(0, len(step) - 1, MOST_STEPS).round().astype(int))
    step, square = step[at].astype(int), norm[at] ** 2
    frame = history.stats(TRAINED, ["sumsq", "micro_sumsq"], step.tolist())
    if frame is None or not len(frame):
        return None
    whole, parted, total = (_by_step(frame, name, step) for name in ("sumsq", "micro_sumsq", ""))
    alike, size_of_step = _sizes(history, step, int(parts))
    usable = (whole > 0) & (parted > 0) & (alike < 1)
    if usable.sum() < WINDOW or whole[usable].sum() < COVERED * total[usable].sum():
        return None
    unit = square[usable] / whole[usable]  # of the loss scale, and of what has no site
    whole, parted, q = whole[usable] * unit, parted[usable] * unit, alike[usable]
    processes = history.env.get("processes")
    rows = int(parts * size) * (processes if isinstance(processes, int) else 1)
    shared = (whole - parted) / (1 - q)
    share = size_of_step[usable] / size_of_step[usable].mean()
    row = shared + rows * share * (parted - q * whole) / (1 - q)
    return Micro(rows, _rows_of_epoch(history, rows), int(size), row, shared, step[usable])


def _sizes(history: History, step: np.ndarray, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """q and N of these steps; q is 1, which tells nothing, where the sizes of the parts are not known."""
    count, squares = (
        history.steps.set_index("step")[name].astype("float64").reindex(step).to_numpy()
        for name in ("supervised_tokens", "supervised_tokens_squared")
    )
    if np.isfinite(squares).any():
        known = np.isfinite(squares) & (count > 0)
        return np.where(known, squares / np.maximum(count, 1) ** 2, 1.0), count
    alike = history.env.get("processes") in (None, 1) and history.task in ("seq_cls", "regression")
    return np.full(len(step), 1 / parts if alike else 1.0), np.ones(len(step))


def _rows_of_epoch(history: History, rows: int) -> int | None:
    step, epoch = history.finite("epoch")
    if len(epoch) < 2 or not epoch[-1] > epoch[0]:
        return None
    return max(round(rows * (step[-1] - step[0]) / (epoch[-1] - epoch[0])), rows)


def _by_step(frame: pd.DataFrame, name: str, step: np.ndarray) -> np.ndarray:
    """Sums over the sites that have micro-batches at these steps; without a name those of sumsq over all sites."""
    values, at = frame[name or "sumsq"].to_numpy("float64"), frame["step"].to_numpy("int64")
    kept = np.isfinite(frame["micro_sumsq"].to_numpy("float64")) if name else np.isfinite(values)
    sums = np.bincount(np.searchsorted(step, at[kept]), values[kept], minlength=len(step))
    return sums[: len(step)]


def neither(history: History) -> Finding | None:
    """Vanishing and exploding are what people fear of a norm: where neither happened, that is said."""
    _, norm = history.finite("grad_norm")
    if len(norm) < 3 * WINDOW or any(rule(history) is not None for rule in (none_since, exploding, vanishing)):
        return None
    early, last = median(norm[1 : 1 + WINDOW]), median(norm[-WINDOW:])
    if not early > 0 or not last > 0:
        return None
    return Finding("grad_norm", "healthy", "explain.norm_neither", {"early": early, "last": last, "n": WINDOW})


def noise(history: History) -> Finding | None:
    """Whether the updates follow a direction that the rows share, or the noise of the batch."""
    micro = micro_batches(history)
    if micro is None:
        return None
    half = len(micro.row) // 2
    early, late = micro.noise(slice(None, half)), micro.noise(slice(half, None))
    values = {"rows": micro.rows, "k": micro.rows // micro.of_one, "early": 100 * early, "late": 100 * late}
    if not micro.is_seen:
        return Finding("grad_norm", "note", "explain.noise_only", values)
    values["equal"] = max((micro.row.mean() - micro.shared.mean()) / micro.shared.mean(), 0.0)
    key = "explain.noise_most" if late > NOISY else "explain.noise_little" if late < CLEAR else "explain.noise_half"
    return Finding("grad_norm", "note", key, values)


def other_batches(history: History) -> Finding | None:
    """The norm that a smaller and a larger batch would have had at the same weights."""
    micro = micro_batches(history)
    if micro is None or not micro.is_seen:  # without a direction that is seen, nobody knows where it stops to fall
        return None
    sizes = [max(round(times * micro.rows), 1) for times in TIMES]
    sizes = sorted({min(n, micro.there_are or n) for n in sizes} - {micro.rows})
    foretold = ", ".join(f"{n:,}: {micro.norm(n):.3g}" for n in sizes)
    values = {"rows": micro.rows, "now": micro.norm(micro.rows), "foretold": foretold}
    return Finding("grad_norm", "note", "explain.norm_by_batch", values)


def noise_scale(history: History) -> Finding | None:
    """How large a batch is worth its tokens; nothing where chance leaves more than 30% of it open."""
    micro = micro_batches(history)
    if micro is None or micro.tokens is None or not micro.is_seen:
        return None
    found = _told(micro, slice(None))
    if found is None:
        return None
    values = {"scale": found[0], "low": found[1], "high": found[2], "rows": micro.rows}
    values |= {"tokens": found[0] * micro.tokens, "from_": found[1] * micro.tokens, "to": found[2] * micro.tokens}
    key = "explain.noise_scale_above" if micro.rows > found[2] else "explain.noise_scale"
    return Finding("grad_norm", "note", key, values)


def _told(micro: Micro, part: slice) -> tuple[float, float, float] | None:
    """The noise scale over a part of the steps, between two standard errors; None where those are wide."""
    value, error = micro.scale(part)
    return (value, value - 2 * error, value + 2 * error) if value > 0 and 2 * error <= TOLD * value else None


def noise_course(history: History) -> Finding | None:
    """The noise scale of the first and the last third of the run, where both are known."""
    micro = micro_batches(history)
    if micro is None or micro.tokens is None or not micro.is_seen or len(micro.row) < 3 * WINDOW:
        return None
    third = len(micro.row) // 3
    early, late = _told(micro, slice(None, third)), _told(micro, slice(-third, None))
    if early is None or late is None:
        return None
    values = {"early": early[0], "early_low": early[1], "early_high": early[2], "early_tokens": early[0] * micro.tokens}
    values |= {"late": late[0], "late_low": late[1], "late_high": late[2], "late_tokens": late[0] * micro.tokens}
    gap = 2 * math.hypot((early[2] - early[1]) / 4, (late[2] - late[1]) / 4)
    grew, fell = late[0] > early[0] + gap, late[0] < early[0] - gap
    key = "explain.noise_grew" if grew else "explain.noise_fell" if fell else "explain.noise_stayed"
    return Finding("grad_norm", "note", key, values)


def noise_modules(history: History) -> Finding | None:
    """Projections, and halves of the layers, whose noise scale is not that of all: as a ratio, whose error is known."""
    frame = history.run.rows(shares=True) if history.run is not None else None
    if frame is None or not len(frame) or not frame["shares"].notna().any():
        return None
    steps = sorted({int(step) for step in frame.loc[frame["shares"].notna(), "step"]})
    statistics = history.stats(TRAINED, ["norm"], steps)
    if len(steps) < FEWEST or statistics is None:
        return None
    modules = statistics["site"].astype(str).str.rpartition(":")[0].rename("module")
    squares: Any = statistics["norm"].pow(2).groupby([statistics["step"], modules]).sum(min_count=1)
    norms = squares.pow(0.5).unstack()
    names = [name for name in frame.attrs["modules"] if name in norms.columns]
    found = group_noise(frame, norms, {"": names, **groups_of(names)})
    if "" not in found or len(found[""][0]) < FEWEST:
        return None
    told = [(name, *ratio) for name, own in found.items() if name and (ratio := log_ratio(own, found[""])) is not None]
    apart = [one for one in told if 2 * abs(one[2]) <= TOLD and abs(one[1]) > 2 * one[2]]
    if not apart:
        return None
    apart = sorted(sorted(apart, key=lambda one: -abs(one[1]))[:SHOWN], key=lambda one: one[1])
    listed = ", ".join(
        f"{name} {math.exp(log):.2f}x ({math.exp(log - 2 * error):.2f}-{math.exp(log + 2 * error):.2f})"
        for name, log, error in apart
    )
    return Finding("grad_norm", "note", "explain.noise_modules", {"listed": listed, "k": len(found[""][0])})


def groups_of(modules: Sequence[str]) -> dict[str, list[str]]:
    """Modules by the last part of their names, and by the half of the layers they are in; no group of all of them."""
    groups: dict[str, list[str]] = {}
    layers = {name: int(found[1]) for name in modules if (found := re.search(r"\.(\d+)\.", name))}
    ends, last = sorted(set(layers.values())), max(layers.values(), default=0)
    for name in modules:
        groups.setdefault(name.rpartition(".")[2], []).append(name)
    if len(ends) > 1:
        middle = ends[len(ends) // 2]
        for name, layer in layers.items():
            half = f"layers.{ends[0]}-{middle - 1}" if layer < middle else f"layers.{middle}-{last}"
            groups.setdefault(half, []).append(name)
    return {name: own for name, own in groups.items() if len(own) < len(modules)}


RULES = (neither, noise, noise_scale, noise_course, noise_modules, other_batches)
