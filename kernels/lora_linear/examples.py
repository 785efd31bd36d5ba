"""The examples of a batch, whose LoRA gradients are summed one by one: which of its M tokens are whose.

    dA_i = sum over e of dA_i,e    dA_i,e = G_i[e]^T dropout(X)[e]     [r_i, K]
    dB_i = sum over e of dB_i,e    dB_i,e = s_i dY_i[e]^T H_i[e]       [N_i, r_i]

where [e] are the rows of example e. The multiplications are those of the whole; what is added is the square of every
dA_i,e and dB_i,e, while it is in the registers. Where examples are known, sums are cut at their borders whether or not
anybody asks for the squares, so that asking changes no bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy
import torch
from torch import Tensor

from .. import cpu
from ..ledger import FLOAT, Ledger

Cuts = tuple[Sequence[int], bool] | None
"""Where examples begin, and whether their squares are asked for; None where nobody knows."""

PIECES = 1 << 24
"""Values of dA_i,e or dB_i,e that are there at once where ATen computes them: 64 MiB."""


class Examples(NamedTuple):
    """The examples of M tokens.

    Attributes:
        starts: where each of E examples begins, and M; ascending, from 0.
        squares: float64 [E, 2 g], rows dense, on the device of the tokens: |dA_i,e|^2 of every projection and then
            |dB_i,e|^2; not finite where a value is not. Assigned by the backward pass. None: nobody wants them.
    """

    starts: Sequence[int]
    squares: Tensor | None = None

    def on_cpu(self, column: int) -> cpu.Squares:
        """As the compiled loops take them, with the squares from a column on."""
        into = None if self.squares is None else self.squares.numpy()
        return cpu.Squares(_array(tuple(self.starts)), into, column)

    def runs(self) -> list[tuple[int, int, int]]:
        """(first example, how many, their length) of neighbours of one length, none without a token."""
        found: list[tuple[int, int, int]] = []
        for e, (start, stop) in enumerate(zip(self.starts, self.starts[1:], strict=False)):
            length = stop - start
            if found and length and found[-1][2] == length and sum(found[-1][:2]) == e:
                first, count, _ = found.pop()
                found.append((first, count + 1, length))
            elif length:
                found.append((e, 1, length))
        return found


@lru_cache(maxsize=64)
def _array(starts: tuple[int, ...]) -> numpy.ndarray:
    return numpy.array(starts, dtype=numpy.int64)


def outer(left: Tensor, x: Tensor, ranks: Sequence[int], examples: Examples | None, column: int) -> Tensor:
    """L^T X [sum of r_i, C] in ATen, for L [M, sum of r_i] and X [M, C] in fp32; squares of the parts of each r_i go to
    the columns from `column` on.
    """
    if examples is None:
        return left.t() @ x
    if examples.squares is not None:
        examples.squares[:, column : column + len(ranks)] = 0
    total = None
    for first, count, length in examples.runs():
        step = max(1, PIECES // (left.shape[1] * x.shape[1]))
        for e in range(first, first + count, step):
            n = min(step, first + count - e)
            tokens = slice(examples.starts[e], examples.starts[e] + n * length)
            pieces = left[tokens].view(n, length, -1).transpose(1, 2) @ x[tokens].view(n, length, -1)
            if examples.squares is not None:
                for i, own in enumerate(pieces.split(list(ranks), dim=1), start=column):
                    into = examples.squares[e : e + n, i]
                    torch.linalg.vector_norm(own, dim=(1, 2), dtype=torch.float64, out=into).square_()
            own = pieces[0] if n == 1 else pieces.sum(0)
            total = own if total is None else total.add_(own)
    return x.new_zeros(left.shape[1], x.shape[1]) if total is None else total


def outer_scratch(ledger: Ledger, ranks: Sequence[int], cols: int, examples: Cuts) -> int:
    """Bytes of L^T X, beside them."""
    n_bytes = FLOAT * sum(ranks) * cols
    if examples is None:
        return ledger.take(n_bytes)
    starts, has_squares = examples
    step, total, old_pieces, old_own = max(1, PIECES // (sum(ranks) * cols)), 0, 0, 0
    for _, count, _ in Examples(starts).runs():
        for first in range(0, count, step):
            n = min(step, count - first)
            pieces = ledger.take(n * n_bytes)
            ledger.give(old_pieces)
            for rank in ranks if has_squares else ():
                ledger.within(8 * n * rank * cols)  # in double
            own = ledger.take(n_bytes) if n > 1 else 0
            ledger.give(old_own)
            # the first sum is the total from then on; that of one example is its piece
            old_pieces, old_own = (pieces, own) if total else (pieces if n > 1 else 0, 0)
            total = n_bytes
    ledger.give(old_pieces, old_own)
    return total or ledger.take(n_bytes)
