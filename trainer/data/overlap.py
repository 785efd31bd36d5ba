"""Evaluation rows that are training rows too, or nearly: an evaluation on them looks better than it is.

    exact   the same token ids
    near    of the evaluation row's runs of GRAM tokens at least NEAR stand in one training row. Runs that many training
            rows have are the template's and count for nothing; of more than MOST runs a share is looked at, chosen by
            their hash (the MinHash of Broder 1997 with a fixed share instead of a fixed number, as sourmash does).

Runs of tokens know no language: Korean is compared as English is. Not seen are rows with fewer than FEW runs of their
own that differ in a token, translations and other words for the same, and a near copy of what many training rows have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .examples import Example

GRAM = 5
NEAR = 0.6
# Runs by which rows of one source are compared: of 40 tokens three that are changed leave three in four of them.
SHORT = 3
# From here on the order of what two rows have in common is looked at too, of rows so short that it takes milliseconds.
NEARLY_ALL, ORDERED = 0.9, 256
# Fewer runs in common than this may be a phrase.
FEW = 4
# 50,000 rows of 200 tokens have 10 million.
MOST = 2_000_000
# Runs that so many training rows have, or a quarter of them, are the template's.
COMMON = 32
SHOWN = 5
_MIX = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Overlap:
    """What evaluation and training rows have in common.

    Attributes:
        exact, near: (evaluation row, training row), source indices, in order.
        n_eval: evaluation rows looked at.
    """

    exact: list[tuple[int, int]]
    near: list[tuple[int, int]]
    n_eval: int

    def __bool__(self) -> bool:
        return bool(self.exact or self.near)

    def facts(self) -> dict[str, Any]:
        """For env.json."""
        shown = {"exact_rows": self.exact[:SHOWN], "near_rows": self.near[:SHOWN]}
        return {"rows": self.n_eval, "exact": len(self.exact), "near": len(self.near), **shown}


def overlap(train: Sequence[Example], evaluation: Sequence[Example]) -> Overlap:
    """Which evaluation rows stand in the training rows."""
    seen = {example.input_ids.tobytes(): example.row for example in reversed(train)}
    exact, rest = [], []
    for example in evaluation:
        found = seen.get(example.input_ids.tobytes())
        if found is None:
            rest.append(example)
        else:
            exact.append((example.row, found))
    pairs = _near([example.input_ids for example in train], [example.input_ids for example in rest])
    near = [(rest[at].row, train[other].row) for at, other, share in pairs if share >= NEAR]
    return Overlap(exact, near, len(evaluation))


def alike(rows: Sequence[np.ndarray]) -> list[tuple[int, int, float]]:
    """(row, another, share of the first one's runs that stand in the other, in their order): for each row the other
    most like it.
    """
    found = _near(rows, rows, gram=SHORT, itself=True)
    return [
        (mine, other, min(share, _in_order(rows[mine], rows[other])) if share >= NEARLY_ALL else share)
        for mine, other, share in found
    ]


def _in_order(mine: np.ndarray, other: np.ndarray) -> float:
    """Share of the tokens of a row that stand in another in the same order: a question and its answer that have changed
    places are no copy. 1 of a row longer than ORDERED, which nobody looks at.
    """
    if len(mine) > ORDERED or np.array_equal(mine, other):
        return 1.0
    matcher = SequenceMatcher(None, mine.tolist(), other.tolist(), autojunk=False)
    return sum(block.size for block in matcher.get_matching_blocks()) / max(len(mine), 1)


def _near(
    train: Sequence[np.ndarray], evaluation: Sequence[np.ndarray], gram: int = GRAM, itself: bool = False
) -> list[tuple[int, int, float]]:
    """(evaluation, training) indices of pairs and the share in common, for each evaluation row its best training row.

    Args:
        itself: whether the two are the same rows, of which none is held against itself.
    """
    n_runs = sum(map(len, train)) + sum(map(len, evaluation))
    share = max(1, -(-n_runs // MOST))
    own, others = _runs(evaluation, share, gram), _runs(train, share, gram)
    hashes, counts = np.unique(others[1], return_counts=True)
    if not len(own[1]) or not len(hashes):
        return []
    order = np.argsort(others[1], kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts)])
    at = np.minimum(np.searchsorted(hashes, own[1]), len(hashes) - 1)
    n_there = np.where(hashes[at] == own[1], counts[at], 0)
    rare = n_there <= min(COMMON, max(1, len(train) // 4))
    row, at, n_there = own[0][rare], at[rare], n_there[rare]
    size = np.bincount(row, minlength=len(evaluation))
    # every pair of an evaluation row and a training row that have a run in common, once for each run
    places = (
        np.repeat(starts[at], n_there) + np.arange(n_there.sum()) - np.repeat(np.cumsum(n_there) - n_there, n_there)
    )
    pairs, common = np.unique(np.repeat(row, n_there) * len(train) + others[0][order[places]], return_counts=True)
    found: dict[int, tuple[int, int]] = {}
    for pair, n in zip(pairs.tolist(), common.tolist(), strict=True):
        mine, other = divmod(pair, len(train))
        if n >= FEW and n > found.get(mine, (0, 0))[0] and not (itself and mine == other):
            found[mine] = (n, other)
    return [(mine, other, n / int(size[mine])) for mine, (n, other) in sorted(found.items())]


def _runs(rows: Sequence[np.ndarray], share: int, gram: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and hash of every run of `gram` tokens, each once a row; of `share` hashes one is kept."""
    lengths = np.array([len(row) for row in rows], np.int64)
    if not len(rows) or lengths.sum() < gram:
        return np.empty(0, np.int64), np.empty(0, np.uint64)
    tokens = np.concatenate(rows).astype(np.uint64) + np.uint64(1)
    row = np.repeat(np.arange(len(rows)), lengths)
    n = len(tokens) - gram + 1
    hashes = np.zeros(n, np.uint64)
    for at in range(gram):
        hashes = (hashes ^ tokens[at : at + n]) * _MIX
        hashes ^= hashes >> np.uint64(29)
    kept = (row[:n] == row[gram - 1 :]) & (hashes % np.uint64(share) == 0)
    row, hashes = row[:n][kept], hashes[kept]
    order = np.lexsort((hashes, row))
    row, hashes = row[order], hashes[order]
    first = np.ones(len(row), bool)
    first[1:] = (row[1:] != row[:-1]) | (hashes[1:] != hashes[:-1])
    return row[first], hashes[first]
