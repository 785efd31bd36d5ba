"""One number for a row, by which rows are read: the worst first. Far out in two ways is further out than in one.

    score = sqrt(sum of the squares of the parts above 0)

    loss          how far its loss is above that of rows of its length at its time, in spreads (judge/row_ranks.py)
    grad          the same of its gradient norm, held against rows of such a loss
    duplicate     log2(1 / (1 - share)), at most MOST_ALIKE: how often the share of its runs of tokens that stand in no
                  other row has halved
    probe         PROBED times how far below that of other rows ln(saved / sqrt(1 + better)) is: what its own question
                  saves it, and what another row's saves it beyond that (rows/probe.py); with --probe only
    cut           CUT where it has as many tokens as data.cutoff_len leaves

A row that was not finite is the worst of all. A row stands out whose score is at least FLAGGED with the probe counted
once: PROBED decides in which order rows are read, and makes no row further out than it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from .row_ranks import standing_out

# A row from here on is named as one to look at: of two normal values above 0 the distance is beyond in one of 2,000, of
# three in one of 800.
FLAGGED = 3.6
MOST_ALIKE = 7.0
CUT = 1.0
# Nats that are no saving; and what a spread counts of what somebody asked for: ranked so, it leads.
LEAST, PROBED = 0.01, 2.5
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


@dataclass(frozen=True)
class Probed:
    """What questions save a row's answer.

    Attributes:
        saved: by its own question, against others'; nat.
        better: by the question of row `fits` beyond its own; nat, 0 where its own is as good.
        fits: the row whose question has most in common with the answer; None where none has anything.
    """

    saved: float
    better: float
    fits: int | None

    @property
    def belongs(self) -> float:
        """How far the answer belongs to its question."""
        return float(belonging(np.float64(self.saved), np.float64(self.better)))


def belonging(saved: np.ndarray | np.float64, better: np.ndarray | np.float64) -> np.ndarray:
    """ln(saved / sqrt(1 + better)), of a saving of at least LEAST. A question that fits better tells half as much as
    one that saves little: rows that ask about the same things have such questions, too.
    """
    return np.log(np.maximum(saved, LEAST)) - np.log1p(better) / 2


def scored(ranks: pd.DataFrame, texts: Texts | None, probed: Mapping[int, Probed] | None) -> pd.DataFrame:
    """The rows with their parts and their score, worst first.

    Args:
        ranks: `row_ranks.rank_rows`.
        probed: of the rows that have a question; None: nobody probed.

    Returns:
        the columns of `ranks`, and `like` (the other row; <NA> for none), `duplicate`, `cut`, `saved`, `better`,
        `fits`, `probe_z`, `score`, and `kind`: the largest of PARTS where the row stands out, NOT_FINITE_KIND, or
        NO_KIND.
    """
    rows = ranks["row"].tolist()
    likes = [texts.duplicate.get(row, (None, 0.0)) if texts else (None, np.nan) for row in rows]
    own = [(probed or {}).get(row) for row in rows]
    found = ranks.assign(
        like=pd.array([other for other, _ in likes], dtype="Int64"),
        duplicate=[share for _, share in likes],
        cut=[bool(texts and row in texts.cut) for row in rows],
        saved=[one.saved if one else np.nan for one in own],
        better=[one.better if one else np.nan for one in own],
        fits=pd.array([one.fits if one else None for one in own], dtype="Int64"),
    )
    return with_score(found).sort_values(["score", "row"], ascending=[False, True], ignore_index=True)


def with_score(found: pd.DataFrame) -> pd.DataFrame:
    """The rows with their `probe_z`, `score` and `kind`.

    Args:
        found: `n_supervised`, `loss_z`, `grad_excess_z`, `duplicate`, `saved`, `better`, `cut` and `not_finite` of
            each.
    """
    saved, better, length = (found[name].to_numpy("float64") for name in ("saved", "better", "n_supervised"))
    probe_z = standing_out(-belonging(saved, better), np.log(np.maximum(length, 1)))
    with np.errstate(invalid="ignore", divide="ignore"):
        alike = -np.log2(1 - found["duplicate"].to_numpy("float64"))
    parts = np.stack([
        found["loss_z"].to_numpy("float64"),
        found["grad_excess_z"].to_numpy("float64"),
        np.minimum(alike, MOST_ALIKE),
        probe_z,
        np.where(found["cut"], CUT, 0.0),
    ])  # fmt: skip
    parts = np.where(np.isfinite(parts), np.maximum(parts, 0.0), 0.0)
    bad = found["not_finite"].to_numpy() > 0
    weights = np.where(np.array(PARTS) == "probe", PROBED, 1.0)[:, None]
    score = np.where(bad, NOT_FINITE, np.sqrt(((weights * parts) ** 2).sum(0)))
    largest = np.where(np.sqrt((parts**2).sum(0)) >= FLAGGED, parts.argmax(0), len(PARTS))
    kind = np.where(bad, NOT_FINITE_KIND, np.array([*PARTS, NO_KIND], dtype=object)[largest])
    return found.assign(probe_z=probe_z, score=score, kind=kind)


def to_leave_out(found: pd.DataFrame) -> list[int]:
    """The rows that stand out, in their order; of copies that stand out the first stays.

    Args:
        found: what `scored` returned.
    """
    lines = [line for line in found.to_dict("records") if line["kind"] != NO_KIND]
    copies = {line["row"] for line in lines if line["kind"] == "duplicate"}
    stays = {
        line["row"] for line in lines if line["row"] in copies and line["like"] in copies and line["row"] < line["like"]
    }
    return sorted(line["row"] for line in lines if line["row"] not in stays)
