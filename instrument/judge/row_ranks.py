"""Which training rows stand out: what each cost, held against rows of the same length at the same time.

    r = y - trend(ln n, step)          y = loss, or ln of grad_norm, of a row's mean loss; the trend is quadratic in
                                       both and fitted to the bulk of the rows (Huber weights), each epoch by itself
    z = r / scale(ln n)                scale: the spread of r among rows of that length, 1.48 median |r|
    excess                             the same of ln grad_norm with a trend in the loss's z too, up to FAR: a gradient
                                       that is large for such a loss, as that of rows in another language is

All numbers are from the moment a row was trained on: later rows met a better model, which the trend takes out. A row's
z is the mean over the epochs it was seen in.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

# Fewer rows are compared with all of them at once.
FEW = 30
HUBER = 1.345
# Spreads of a loss beyond which the trend of the gradient goes no further.
FAR = 4.0
TURNS = 8
# Losses in nats a token; a change of less, or of less than a tenth, is no change.
LEAST, SHARE = 0.05, 0.1
LEARNED, FORGOTTEN, NEVER, STEADY, ONCE = "learned", "forgotten", "never_learned", "steady", "once"
"""What became of a row: its loss fell and stayed, fell and rose again, never fell; it was low from the start; it was
trained on once, and nobody knows."""


def backed_off(metrics: pd.DataFrame) -> set[int]:
    """Steps after which the loss scale fell: their gradients overflowed, whatever their rows.

    Args:
        metrics: `step`, `skipped`, `loss_scale`, a line a step, in order.
    """
    if not {"loss_scale", "skipped"} <= set(metrics):
        return set()
    scale, skipped = metrics["loss_scale"].to_numpy("float64"), metrics["skipped"].to_numpy("float64") > 0
    return set(metrics["step"].to_numpy()[:-1][skipped[:-1] & (scale[1:] < scale[:-1])].astype(int).tolist())


def rank_rows(frame: pd.DataFrame, fell: Collection[int] = ()) -> pd.DataFrame:
    """One line for each row that was trained on.

    Args:
        frame: `row_log.read_training_rows`.
        fell: steps whose gradients say nothing of their rows: `backed_off`.

    Returns:
        by `row`:
            seen                      how often it was trained on
            n_tokens, n_supervised
            loss, loss_last           of the first time and the last, nat a token
            loss_mean                 over the times
            grad_norm                 of its mean loss, mean over the times
            loss_z, grad_z            see above
            grad_excess_z             of the excess
            share, token_share        of all rows' |g|^2, and of all supervised tokens
            course                    one of the words above
            not_finite                how often loss or gradient was not
    """
    import pandas as pd

    frame = frame.sort_values(["step", "micro_batch", "process"], kind="stable")
    column = {name: frame[name].to_numpy("float64") for name in ("step", "loss", "grad_norm", "sumsq", "n_supervised")}
    epoch = frame.groupby("row").cumcount().to_numpy()
    row, place = np.unique(frame["row"].to_numpy(), return_inverse=True)
    order = np.argsort(place, kind="stable")
    starts = np.searchsorted(place[order], np.arange(len(row) + 1))
    first, last = order[starts[:-1]], order[starts[1:] - 1]
    # NaN is a square that nobody took, as well as one that is none: an infinite loss tells the two apart
    bad = ~np.isfinite(column["loss"]) | (np.isinf(column["sumsq"]) & ~np.isin(column["step"], list(fell)))
    squares = np.where(np.isfinite(column["sumsq"]), column["sumsq"], 0.0)

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(place, values, minlength=len(row))

    def mean(values: np.ndarray) -> np.ndarray:
        finite = np.isfinite(values)
        count = total(finite.astype("float64"))
        return total(np.where(finite, values, 0.0)) / np.where(count > 0, count, np.nan)

    losses = [column["loss"][own] for own in np.split(order, starts[1:-1])]
    return pd.DataFrame({
        "row": row,
        "seen": np.diff(starts),
        "n_tokens": frame["n_tokens"].to_numpy()[last],
        "n_supervised": frame["n_supervised"].to_numpy()[last],
        "loss": column["loss"][first],
        "loss_last": column["loss"][last],
        "loss_mean": mean(column["loss"]),
        "grad_norm": mean(column["grad_norm"]),
        **{name: mean(values) for name, values in _spreads(column, epoch).items()},
        "share": total(squares) / (float(squares.sum()) or np.nan),
        "token_share": total(column["n_supervised"]) / max(float(column["n_supervised"].sum()), 1.0),
        "course": [course(own) for own in losses],
        "not_finite": total(bad.astype("float64")).astype(int),
    })  # fmt: skip


def _spreads(column: Mapping[str, np.ndarray], epoch: np.ndarray) -> dict[str, np.ndarray]:
    """The z of every time a row was trained on."""
    with np.errstate(divide="ignore", invalid="ignore"):
        norms = np.where(column["grad_norm"] > 0, np.log(column["grad_norm"]), np.nan)
    places = np.log(np.maximum(column["n_supervised"], 1)), column["step"], epoch
    loss_z = _standing_out(column["loss"], *places)
    excess = _standing_out(norms, *places, np.clip(loss_z, -FAR, FAR))
    return {"loss_z": loss_z, "grad_z": _standing_out(norms, *places), "grad_excess_z": excess}


def course(losses: np.ndarray) -> str:
    """What became of a row with these losses, one a time it was trained on."""
    losses = losses[np.isfinite(losses)]
    if len(losses) < 2:
        return ONCE
    first, last, least = losses[0], losses[-1], losses.min()
    enough = max(LEAST, SHARE * first)
    if first - least < enough:
        return STEADY if first < LEAST * 4 else NEVER
    return FORGOTTEN if last - least > max(enough, (first - least) / 2) else LEARNED


def standing_out(values: np.ndarray, length: np.ndarray) -> np.ndarray:
    """z of each value among all, NaN where it is not finite; `length` is ln n."""
    nothing = np.zeros(len(values))
    return _standing_out(values, length, nothing, nothing)


def _standing_out(
    values: np.ndarray, length: np.ndarray, step: np.ndarray, epoch: np.ndarray, *others: np.ndarray
) -> np.ndarray:
    """The same, with a trend in the step and in whatever else is given; each epoch by itself."""
    found = np.full(len(values), np.nan)
    for number in np.unique(epoch):
        own = np.flatnonzero((epoch == number) & np.isfinite(np.stack([values, *others])).all(0))
        if len(own) < 3:
            continue
        residual = values[own] - _trend(values[own], length[own], step[own], *(other[own] for other in others))
        spread = 1.4826 * float(np.median(np.abs(residual - np.median(residual))))
        if spread <= 1e-9 * float(np.abs(values[own]).max()):  # they are all alike, but for rounding
            continue
        scale = np.full(len(own), spread)
        if len(own) >= FEW and spread > 0:  # short rows scatter more
            logs = np.log(np.maximum(np.abs(residual), spread / 100))
            slope = np.polyfit(length[own], logs, 1)[0] if np.ptp(length[own]) > 0 else 0.0
            scale = spread * np.exp(np.clip(slope, -0.5, 0.0) * (length[own] - np.median(length[own])))
        found[own] = residual / np.where(scale > 0, scale, np.nan)
    return found


def _trend(values: np.ndarray, *places: np.ndarray) -> np.ndarray:
    """What rows at such places cost (lengths, steps), by a fit that the few that stand out do not bend."""
    if len(values) < FEW:
        return np.full(len(values), np.median(values))
    columns = [np.ones(len(values))]
    for one in places:
        if np.ptp(one) > 0:
            scaled = (one - one.mean()) / np.ptp(one)
            columns += [scaled, scaled**2]
    design = np.stack(columns, axis=1)
    weight = np.ones(len(values))
    fitted = np.full(len(values), np.median(values))
    for _ in range(TURNS):
        root = np.sqrt(weight)[:, None]
        fitted = design @ np.linalg.lstsq(design * root, values * root[:, 0], rcond=None)[0]
        residual = values - fitted
        spread = 1.4826 * np.median(np.abs(residual)) or 1.0
        weight = np.minimum(1.0, HUBER * spread / np.maximum(np.abs(residual), 1e-12))
    return fitted
