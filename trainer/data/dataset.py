"""The rows of a source as tokens: what everything behind the reading of rows works with.

Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .fields import Note
from .labels.labels import Labels
from .overlap import Overlap

IGNORE_INDEX = -100


@dataclass(frozen=True)
class Example:
    """One row as tokens.

    Attributes:
        row: 0-based index in the source as read.
        input_ids: int32 [length].
        supervised: bool [length]; whether the token is a target. The first token never is: nothing predicts it. Of a
            classifier whether the token has a label; a row's own label stands at its last token.
        labels: of a classifier int64 [1], or float32 [n] for several labels or values a row; of tokens int64 [length],
            IGNORE_INDEX where there is none.
        token_types: uint8 [length], 1 in the second of two texts, where the model tells them apart.
        weight: what the row counts in a mean loss; None: as many as it has targets.
        is_tagged: whether the labels are those of tokens.
    """

    row: int
    input_ids: np.ndarray
    supervised: np.ndarray
    labels: np.ndarray | None = None
    token_types: np.ndarray | None = None
    weight: float | None = None
    is_tagged: bool = False

    @property
    def n_supervised(self) -> int:
        return int(self.supervised.sum())

    @property
    def counts(self) -> float:
        """What the row counts in a mean loss."""
        return self.n_supervised if self.weight is None else self.weight

    def content(self) -> bytes:
        """What tells rows apart: tokens, mask and labels."""
        return b"".join(part.tobytes() for part in (self.input_ids, self.supervised, self.labels) if part is not None)


@dataclass(frozen=True)
class Dataset:
    """The tokenized rows of one source.

    Attributes:
        source: the name the user gave.
        examples: rows that have at least one supervised token.
        dropped: source indices of the rows that have none.
        truncated: number of rows cut at cutoff_len.
        format: a name of data.format, or "prompt_template".
        n_skipped: number of bad rows left out (data.on_bad_row: skip).
        skipped: what was wrong with the first of them.
        n_rows: rows of the source, those that are left out included.
        notes: what is to be said about rows, and of how many.
        overlap: of evaluation rows, what they have in common with the training rows.
        labels: of a classifier, what its labels are.
        n_characters: of a classifier's rows.
    """

    source: str
    examples: Sequence[Example]
    dropped: Sequence[int] = ()
    truncated: int = 0
    format: str = ""
    n_skipped: int = 0
    skipped: Sequence[str] = ()
    n_rows: int = 0
    notes: Sequence[tuple[Note, int]] = ()
    overlap: Overlap | None = None
    labels: Labels | None = None
    n_characters: int = 0

    def fingerprint(self) -> str:
        """16 hex digits that change with any token, mask or row index."""
        digest = hashlib.sha256()
        for example in self.examples:
            digest.update(f"{example.row} {len(example.input_ids)} ".encode())
            digest.update(example.content())
        return digest.hexdigest()[:16]

    @cached_property
    def row_hashes(self) -> np.ndarray:
        """uint64 [rows] in the order of the source: each changes with the tokens and the mask of its row alone."""
        # answers of one row that are examples of their own: the longest first, as evaluation has them
        ordered = sorted(self.examples, key=lambda example: (example.row, -len(example.input_ids)))
        parts = (f"{len(e.input_ids)} ".encode() + e.content() for e in ordered)
        return np.array([int.from_bytes(hashlib.sha256(part).digest()[:8], "little") for part in parts], np.uint64)
