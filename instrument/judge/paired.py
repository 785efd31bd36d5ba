"""Two evaluations of the same rows, held against each other row by row: what one row differs from another cancels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .course import SMALL


@dataclass(frozen=True)
class Paired:
    """Two evaluations of the same rows, held against each other row by row.

    Attributes:
        percent: change of the mean loss a token from a to b, in percent of a.
        p: share of random signs of the rows' differences whose sum is as far from 0, with their tails or without, the
            smaller one; at least one of FLIPS + 1.
        verdict: "rose", "fell" or "same" (as far as these rows can tell).
        n: rows.
    """

    percent: float
    p: float
    verdict: str
    n: int


FLIPS = 4000
# Of each of the two questions: together some three of a hundred pairs that differ by chance alone are called different.
UNLIKELY = 0.02
# In median deviations; what it finds is printed by python -m benchmarks.judging --part rows.
REACH = 6.0


def paired(rows_a: np.ndarray, tokens_a: np.ndarray, rows_b: np.ndarray, tokens_b: np.ndarray) -> Paired:
    """Whether the loss changed between two evaluations of the same rows.

    The rows' differences d = rows_b - rows_a are given random signs: were nothing changed, their sum would be as likely
    with any. It is exact for every spread of d that is symmetric. Asked twice: of d, whose tail may be what changed,
    and of d with the rows beyond REACH deviations counted as there, so that a tail doesn't hide what the others did.

    Args:
        rows_a, rows_b: (rows,), the sum of the losses of each row's tokens, in nats.
        tokens_a, tokens_b: (rows,), how many tokens each sum is of.

    Raises:
        ValueError: they are not the same rows: their number or their tokens differ.
    """
    a, b = np.asarray(rows_a, "float64"), np.asarray(rows_b, "float64")
    tokens, others = np.asarray(tokens_a, "float64"), np.asarray(tokens_b, "float64")
    if not a.shape == b.shape == tokens.shape == others.shape or not np.array_equal(tokens, others):
        raise ValueError("paired needs the same rows: their number or their tokens differ; compare means instead")
    kept = np.isfinite(a) & np.isfinite(b) & (tokens > 0)
    difference, n = (b - a)[kept], int(kept.sum())
    base = float(a[kept].sum())
    percent = 100 * float(difference.sum()) / base if base else 0.0
    held = _without_tails(difference)
    asked = [difference, held] if float(held.sum()) * percent > 0 else [difference]
    sums = (np.random.default_rng(0).integers(0, 2, (FLIPS, n)) * 2 - 1) @ np.stack(asked, axis=1)
    beyond = np.sum(np.abs(sums) >= np.abs(np.sum(asked, axis=1)) * (1 - 1e-12), axis=0)
    p = (1 + int(beyond.min())) / (FLIPS + 1)
    changed = p < UNLIKELY and abs(percent) > 100 * SMALL
    return Paired(percent, p, ("rose" if percent > 0 else "fell") if changed else "same", n)


def _without_tails(difference: np.ndarray) -> np.ndarray:
    """The differences, cut off at REACH scaled median deviations; as they are where most are 0."""
    reach = REACH * 1.4826 * float(np.median(np.abs(difference))) if len(difference) else 0.0
    return np.clip(difference, -reach, reach) if reach else difference
