"""Direction and noise of a gradient from the norms of its rows: no accumulation is needed, and lengths may differ.

A step of B rows has the gradient g = sum of v_r / N, where v_r is the gradient of row r's loss sum, n_r its supervised
tokens and N their sum. With E over rows drawn at random, and G = E v / E n the gradient of all of them,

    E |g|^2 = |G|^2 + S / B          S = E |v - n G|^2 / (E n)^2
            S = (E |v|^2 - 2 X / E n + |E v|^2 E n^2 / (E n)^2) / (E n)^2          X = E[n v] . E v

What a step records gives unbiased estimates of each: P = |sum of v_r|^2 - sum of |v_r|^2 is a sum over pairs of two
different rows, B (B - 1) |E v|^2 on average, and P N is B (B - 1) (2 X + (B - 2) E n |E v|^2). The last is what the
textbook formula for parts that are alike (McCandlish et al. 2018, appendix A.1) takes for 0: where the gradient of a
token depends on the length of its row, it is not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

WEIGHTY = 5.0
ROUNDED = 1e-3
"""Of the terms: at worst operands are rounded to TF32, whose unit is 2^-11."""


@dataclass(frozen=True)
class RowNoise:
    """Estimates of every step, whose means are those of a run.

    Attributes:
        steps: their numbers.
        rows: of a step, on average.
        row: |G|^2 + S, the squared gradient norm of one row alone.
        shared: |G|^2.
        tokens: supervised tokens of a row on average.
    """

    steps: np.ndarray
    rows: int
    row: np.ndarray
    shared: np.ndarray
    tokens: float


def row_noise(frame: pd.DataFrame, norms: pd.Series) -> RowNoise | None:
    """From the rows of steps and the norms of those steps' gradients.

    Args:
        frame: `row_log.read_training_rows`.
        norms: gradient norm by step, over the same parameters as the rows'.

    Returns:
        None where fewer than two rows make a step, or what is recorded does not say.
    """
    if not len(frame):
        return None
    frame = frame.assign(n=frame["n_supervised"].astype("float64"))
    by_step = frame.assign(n2=frame["n"] ** 2).groupby("step")
    sums = by_step.agg(
        count=("n", "size"), n=("n", "sum"), n2=("n2", "sum"), squares=("sumsq", _sum), first=("row", "min")
    )
    norm = norms.reindex(sums.index).to_numpy("float64")
    count, n, n2, squares = (sums[name].to_numpy("float64") for name in ("count", "n", "n2", "squares"))
    kept = (count > 1) & np.isfinite(norm) & np.isfinite(squares) & (n > 0)
    if not kept.any():
        return None
    count, n, n2, norm, squares = count[kept], n[kept], n2[kept], norm[kept], squares[kept]
    mean, square = n.sum() / count.sum(), n2.sum() / count.sum()
    whole, parts = (norm * n) ** 2, squares * n**2
    pairs = count * (count - 1)
    shared = (whole - parts) / pairs
    crossed = ((whole - parts) * n / pairs - (count - 2) * mean * shared) / 2
    noise = (parts / count - 2 * crossed / mean + shared * square / mean**2) / mean**2
    shared = shared / mean**2
    return RowNoise(sums.index.to_numpy()[kept], round(count.mean()), shared + noise, shared, float(mean))


def group_noise(
    frame: pd.DataFrame, norms: pd.DataFrame, groups: Mapping[str, Sequence[str]]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """S and |G|^2 of groups of modules at each step whose rows were recorded module by module.

    Args:
        frame: `row_log.read_training_rows` with shares.
        norms: gradient norms, steps x modules.
        groups: name -> modules.

    Returns:
        name -> (S, |G|^2), [steps] each, of the same steps; without groups of which a module is not known.
    """
    import pandas as pd

    names = frame.attrs.get("modules", [])
    rows = frame[frame["shares"].notna()] if len(frame) else frame
    if not len(rows):
        return {}
    shares = np.array([list(own) for own in rows["shares"]], "float64")
    found: dict[str, RowNoise] = {}
    for name, modules in groups.items():
        if set(modules) <= set(names) and set(modules) <= set(norms.columns):
            own = shares[:, [names.index(module) for module in modules]].sum(axis=1)
            whole = np.sqrt(np.square(norms[list(modules)].to_numpy("float64")).sum(axis=1))
            noise = row_noise(rows.assign(sumsq=own), pd.Series(whole, index=norms.index))
            found |= {} if noise is None else {name: noise}
    kept = sorted(set.intersection(*(set(noise.steps.tolist()) for noise in found.values()))) if found else []
    places = {name: np.searchsorted(noise.steps, kept) for name, noise in found.items()}
    return {name: (found[name].row[at] - found[name].shared[at], found[name].shared[at]) for name, at in places.items()}


def log_ratio(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> tuple[float, float] | None:
    """ln of the ratio of two noise scales over the same steps, and its standard error (jackknife over the steps: what
    both share cancels); None where a direction is not seen without one of the steps.
    """
    n = len(one[0])
    if n < 2:
        return None
    sums = np.array([part.sum() for part in (*one, *other)])
    without = sums[:, None] - np.stack([*one, *other])
    if not (sums > 0).all() or not (without > 0).all():
        return None
    noise, shared, of_noise, of_shared = np.log(without)
    logs = noise - shared - of_noise + of_shared
    value = np.log(sums) @ [1, -1, -1, 1]
    return float(value), float(np.sqrt((n - 1) / n * np.square(logs - logs.mean()).sum()))


def _sum(values: pd.Series) -> float:
    return float(values.sum(skipna=False))


def without(square: float, along: np.ndarray, own: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Squared norm of a step's gradient, had each of its rows not been in it: the mean over the other rows' tokens,

        |g'|^2 = (|g|^2 - 2 g . g_r + |g_r|^2) (N / (N - n_r))^2          N = sum of n_s

    Args:
        square: |g|^2 of the step.
        along, own, n: of its rows, [rows]: g . g_r, |g_r|^2 and supervised tokens, as the columns `along` (of a step of
            one micro-batch), `sumsq` and `n_supervised` of row_log.TRAINING_ROWS.

    Returns:
        [rows]; not finite for a row that has all tokens.
    """
    tokens = n.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        return (square - 2 * along + own) * (tokens / (tokens - n)) ** 2


def heaviest_rows(frame: pd.DataFrame, norms: pd.Series) -> pd.DataFrame:
    """Rows that weighed far more than their length: their part of a step's squares is over WEIGHTY times that of its
    tokens.

    Args:
        frame: `row_log.read_training_rows`; of it the steps with `along` and one micro-batch of several rows.
        norms: gradient norm by step, over the same parameters as the rows'.

    Returns:
        by `step`, the largest `share` of the squares first: `row`, `share`, `token_share`, `norm`, and `without`, what
        the norm had been without the row.
    """
    import pandas as pd

    whole, found = norms.to_dict(), []
    recorded: Any = frame[frame["step"].isin(frame.loc[frame["along"].notna(), "step"])]
    for step, own in recorded.groupby("step"):
        squares, along, n = (own[name].to_numpy("float64") for name in ("sumsq", "along", "n_supervised"))
        norm = float(whole.get(step, np.nan))
        single = len(own) > 1 and own["micro_batch"].nunique() == own["process"].nunique() == 1
        if not single or not np.isfinite([norm, *squares, *along]).all() or not squares.sum() > 0:
            continue
        shares, tokens = squares / squares.sum(), n / n.sum()
        rest = without(norm**2, along, squares, n)
        # of numbers that cancel nothing is left but their rounding
        told = rest > ROUNDED * (norm**2 + 2 * np.abs(along) + squares) * (n.sum() / np.maximum(n.sum() - n, 1)) ** 2
        found += [
            (step, int(own["row"].iloc[at]), shares[at], tokens[at], norm, math.sqrt(rest[at]))
            for at in np.flatnonzero((shares > WEIGHTY * tokens) & told)
        ]
    columns = ["step", "row", "share", "token_share", "norm", "without"]
    return pd.DataFrame(found, columns=columns).sort_values("share", ascending=False, ignore_index=True)
