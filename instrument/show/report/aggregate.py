"""Reduces the statistics of a run to a grid of sites x bins of steps that a page can hold. Imports no torch.

A bin never drops an extreme: it keeps the smallest, the mean and the largest norm, the largest magnitude, and the sums
of the counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...read.load import is_gradient

if TYPE_CHECKING:
    from ...read.load import Block, Run

# 4 bytes x 7 grids, as text 4/3 of it: 4.5 MB.
MAX_CELLS = 120_000
MIN_BINS = 40
# Histograms of all sites at so many of the steps that have them.
HISTOGRAM_STEPS = 12
COLUMNS = (
    "sumsq", "absmax", "n_nan", "n_inf", "n_overflow", "n_underflow", "n_subnormal", "n_zero", "n",
    "exponent_first",
)  # fmt: skip
GRIDS = ("norm_min", "norm_mean", "norm_max", "absmax", "nonfinite", "overflow", "underflow")


@dataclass
class Grid:
    """Statistics of a run, reduced.

    Attributes:
        names: of the sites, in execution order.
        bins: first and last step of each bin, int64 [bins, 2].
        values: float32 [sites, bins] by a name of GRIDS, NaN where nothing is known. `norm` is unscaled for gradients;
            `nonfinite` and `overflow` are sums; `underflow` is the largest share of non-zero values lost to zero.
        histogram_steps: that have exponents.
        peaks: absmax of the sites that were asked for, float64 [steps, sites], NaN where nothing is known.
    """

    names: list[str]
    bins: np.ndarray
    values: dict[str, np.ndarray]
    histogram_steps: list[int]
    peaks: np.ndarray


def aggregate(
    run: Run, steps: np.ndarray, scales: dict[tuple[int, int], float], peaks_of: Sequence[str] = ()
) -> Grid | None:
    """The grid of a run; None if it recorded no statistics.

    Args:
        steps: of metrics.jsonl, sorted.
        scales: loss scale by (start, step).
        peaks_of: names of sites whose absmax is wanted at every step.
    """
    n_sites = len(run.sites)
    if not n_sites or not len(steps):
        return None
    n_bins = min(len(steps), max(MIN_BINS, MAX_CELLS // n_sites))
    edges = np.array([part[0] for part in np.array_split(steps, n_bins)], np.int64)
    bins = np.stack([edges, np.append(edges[1:] - 1, steps[-1])], axis=1)
    grids: dict[str, np.ndarray] | None = None
    names: list[str] = []
    scaled = np.zeros(0, bool)
    with_histogram: set[int] = set()
    peaks, place = np.full((len(steps), len(peaks_of)), np.nan), np.zeros(0, np.int64)
    for block in run.blocks(COLUMNS, steps.tolist()):
        if grids is None:
            names = block.names
            grids = {name: np.full((len(names), n_bins), np.nan) for name in (*GRIDS, "count")}
            scaled = np.array([is_gradient(name) for name in names])
            column = {name: at for at, name in enumerate(peaks_of)}
            place = np.array([column.get(name, -1) for name in names])
        _add(grids, block, np.searchsorted(edges, block.step, side="right") - 1, _scale(block, scales, scaled))
        wanted = place[block.site] >= 0
        at = np.searchsorted(steps, block.step[wanted])
        peaks[at, place[block.site[wanted]]] = block.values["absmax"][wanted]
        with_histogram |= set(np.unique(block.step[~np.isnan(block.values["exponent_first"])]).tolist())
    if grids is None:
        return None
    with np.errstate(invalid="ignore"):
        grids["norm_mean"] /= grids.pop("count")
    values = {name: values.astype(np.float32) for name, values in grids.items()}
    return Grid(names, bins, values, sorted(with_histogram), peaks)


def _scale(block: Block, scales: dict[tuple[int, int], float], scaled: np.ndarray) -> np.ndarray:
    """What each row's norm is divided by."""
    first, last = int(block.step.min()), int(block.step.max())
    table = np.array([scales.get((block.start, step), np.nan) for step in range(first, last + 1)])
    return np.where(scaled[block.site], table[block.step - first], 1.0)


def _add(grids: dict[str, np.ndarray], block: Block, bin_of: np.ndarray, scale: np.ndarray) -> None:
    value, n_bins = block.values, grids["absmax"].shape[1]
    key = block.site * n_bins + bin_of
    starts = np.flatnonzero(np.diff(key, prepend=-1))
    at = key[starts]
    with np.errstate(all="ignore"):
        norm = np.sqrt(value["sumsq"]) / scale
        unknown = np.isnan(value["n_underflow"])
        zeroed = np.where(unknown, 0.0, value["n_underflow"])
        nonzero = value["n"] - value["n_zero"] + zeroed
        share = np.where(nonzero > 0, np.where(unknown, value["n_subnormal"], zeroed) / nonzero, np.nan)
    known = (~np.isnan(norm)).astype(float)
    for name, values, ufunc in (
        ("norm_min", norm, np.fmin),
        ("norm_max", norm, np.fmax),
        ("norm_mean", np.where(np.isnan(norm), 0.0, norm), np.add),
        ("count", known, np.add),
        ("absmax", value["absmax"], np.fmax),
        ("nonfinite", value["n_nan"] + value["n_inf"], np.add),
        ("overflow", value["n_overflow"], np.add),
        ("underflow", share, np.fmax),
    ):
        flat = grids[name].reshape(-1)
        reduced = ufunc.reduceat(values, starts)
        before = flat[at]
        flat[at] = np.where(np.isnan(before), reduced, ufunc(before, reduced))


def histograms(run: Run, grid: Grid) -> list[dict[str, Any]]:
    """Exponents of every site at some of the steps that have them: the first, the last and others between.

    Returns:
        by step the site's indices, first exponents, and counts, each as round(8 log2(count + 1)), which fits a byte.
    """
    found = grid.histogram_steps
    chosen = [found[round(i)] for i in np.linspace(0, len(found) - 1, min(len(found), HISTOGRAM_STEPS))]
    code = {name: at for at, name in enumerate(grid.names)}
    rows = []
    for step, own in run.histograms(chosen).items():
        counts = [np.round(8 * np.log2(np.asarray(counts, float) + 1)).astype(np.uint8) for _, counts in own.values()]
        sites = [code[name] for name in own]
        rows.append({"step": step, "sites": sites, "first": [first for first, _ in own.values()], "counts": counts})
    return rows
