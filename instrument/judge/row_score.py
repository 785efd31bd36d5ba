"""One number for a row, by which rows are read: the worst first. It is the largest of its parts.

    loss_z        how far its loss is above that of rows of its length at its time, in spreads (judge/row_ranks.py)
    grad_z        the same of its gradient norm, less the two spreads that chance gives the largest of some dozens
    duplicate     the share of its runs of tokens that stand in one other row, beyond what phrases have in common
    cut           whether it has as many tokens as data.cutoff_len leaves
    probe_z       with --probe: how far ln(loss with its question / loss without) is above that of other rows

A row that was not finite is the worst of all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from .row_ranks import standing_out

# A row from here on is named as one to look at: so far out is one in 2,000 of normal values, for one part.
FLAGGED = 3.3
# Of runs in common what is no duplicate yet, and what every further tenth of them is worth in spreads.
PHRASES, TENTH = 0.3, 1.0
CUT = 1.0
NOT_FINITE = 99.0


PARTS = ("loss", "grad", "duplicate", "probe", "cut")
PREVIEW = 300
"""Characters that are shown of a row."""
NO_KIND, NOT_FINITE_KIND = "", "not_finite"


@dataclass(frozen=True)
class Texts:
    """What the rows themselves tell.

    Attributes:
        duplicate: row -> (the other row most like it, share of its runs of tokens that stand there).
        cut: rows of as many tokens as there may be.
        previews: row -> how it begins, on one line; empty where nobody asked for it.
    """

    duplicate: Mapping[int, tuple[int, float]]
    cut: set[int]
    previews: Mapping[int, str] = field(default_factory=dict)


def scored(ranks: pd.DataFrame, texts: Texts | None, ratios: Mapping[int, float] | None) -> pd.DataFrame:
    """The rows with their parts and their score, worst first.

    Args:
        ranks: `row_ranks.rank_rows`.
        ratios: of each row, loss with its question over loss without; None: nobody probed.

    Returns:
        the columns of `ranks`, and `like` (the other row; <NA> for none), `duplicate`, `cut`, `ratio`, `probe_z`,
        `score`, and `kind`: which of PARTS it is that stands out, NOT_FINITE_KIND, or NO_KIND.
    """
    rows = ranks["row"].tolist()
    likes = [texts.duplicate.get(row, (None, 0.0)) if texts else (None, np.nan) for row in rows]
    found = ranks.assign(
        like=pd.array([other for other, _ in likes], dtype="Int64"),
        duplicate=[share for _, share in likes],
        cut=[bool(texts and row in texts.cut) for row in rows],
        ratio=[(ratios or {}).get(row, np.nan) for row in rows],
    )
    length = np.log(np.maximum(found["n_supervised"].to_numpy("float64"), 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        logs = np.log(found["ratio"].to_numpy("float64"))
    found["probe_z"] = standing_out(logs, length)
    parts = np.stack([
        found["loss_z"].to_numpy("float64"),
        found["grad_z"].to_numpy("float64") - 2.0,
        (found["duplicate"].to_numpy("float64") - PHRASES) * 10 * TENTH,
        found["probe_z"].to_numpy("float64"),
        np.where(found["cut"], CUT, -np.inf),
    ])  # fmt: skip
    parts = np.where(np.isfinite(parts), parts, -10.0)
    bad = found["not_finite"].to_numpy() > 0
    found["score"] = np.where(bad, NOT_FINITE, np.max(parts, axis=0))
    largest = np.where(found["score"] >= FLAGGED, parts.argmax(0), len(PARTS))
    found["kind"] = np.where(bad, NOT_FINITE_KIND, np.array([*PARTS, NO_KIND], dtype=object)[largest])
    return found.sort_values(["score", "row"], ascending=[False, True], ignore_index=True)
