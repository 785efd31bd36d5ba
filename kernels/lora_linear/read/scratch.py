"""Bytes that the passes over dY and X take beside what they return, in the order of launches.py."""

from __future__ import annotations

from torch import Tensor

from ...backend import n_multiprocessors
from ...ledger import FLOAT, Ledger
from ...statistics.pending_rows import PARTIAL_BYTES
from ..group import Examples
from ..shapes import Read, read_shape
from ..tiles import precision
from .launches import DOUBLE
from .spans import cut


class ReadScratch:
    """Both passes, and the sum of what they leave. Squares wait as partials do. The tables of spans are left out: all
    layers of a micro-batch share them.
    """

    def __init__(self, ledger: Ledger, x: Tensor, examples: Examples | None, with_stats: bool, with_squares: bool):
        self._ledger, self._x, self._with_stats = ledger, x, with_stats
        self._rows = x.shape[0] if examples is None else tuple(examples.starts)
        self._n_examples = len(self._rows) - 1 if isinstance(self._rows, tuple) and with_squares else 0
        self._n_cut = 0

    def _shape(self, kernel: str, cols: tuple[int, ...], ranks: tuple[int, ...]) -> Read:
        shape = read_shape(kernel, cols, ranks, precision(self._x), n_multiprocessors(self._x.device), self._rows)
        if isinstance(self._rows, tuple) and self._n_examples:
            self._n_cut = max(self._n_cut, cut(self._rows, shape.tile.block_m, shape.wanted).n_cut)
        return shape

    def _squares(self, shape: Read) -> None:
        self._ledger.wait(DOUBLE * sum(shape.n_squares) * self._n_examples)

    def grad(self, cols: tuple[int, ...], ranks: tuple[int, ...]) -> tuple[int, int]:
        """Bytes of dB in parts, and how many partials there are of dY."""
        m, ledger, self._n_cut = self._x.shape[0], self._ledger, 0
        shape = self._shape("grad", cols, ranks)
        outer = ledger.take(FLOAT * shape.splits * shape.n_outer)
        down = ledger.take(FLOAT * shape.n_strips * m * sum(ranks))
        n_found = shape.grid[0] * shape.splits
        ledger.wait(PARTIAL_BYTES * (n_found + shape.n_left * len(cols)) if self._with_stats else 0)
        self._squares(shape)
        ledger.give(down)
        return outer, n_found

    def da(self, ranks: tuple[int, ...]) -> int:
        """Bytes of dA in parts."""
        shape = self._shape("dA", (self._x.shape[1],), ranks)
        outer = self._ledger.take(FLOAT * shape.splits * shape.n_outer)
        self._squares(shape)
        return outer

    def total(self, n_blocks: int) -> None:
        """The squares of examples that were cut."""
        self._ledger.wait(DOUBLE * self._n_cut * n_blocks)
