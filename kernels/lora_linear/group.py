"""The projections of a group, as one call computes with them: W_i [N_i, K], A_i [r_i, K], B_i [N_i, r_i], bias_i [N_i];
and the examples that its M tokens are of, one behind the other, whose LoRA gradients are summed one by one:

    dA_i = sum over e of dA_i,e    dA_i,e = G_i[e]^T dropout(X)[e]     [r_i, K]
    dB_i = sum over e of dB_i,e    dB_i,e = s_i dY_i[e]^T H_i[e]       [N_i, r_i]

where [e] are the rows of example e. The multiplications are those of the whole; what is added is the square of every
dA_i,e and dB_i,e, while it is in the registers. Where examples are known, sums are cut at their borders whether or not
anybody asks for the squares, so that asking changes no bit. The other formulas are in __init__.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy
import torch
from torch import Tensor

from .. import cpu
from ..frozen.nf4 import NF4Weight, decode


class Dropout(NamedTuple):
    """Which values of X do not count: a function of a seed tensor, int64 of one element, and of their place."""

    seed: Tensor | None = None
    p: float = 0.0


NO_DROPOUT = Dropout()


class Factor(NamedTuple):
    """The right factors of a product of low rank: [r_i, C], one below the other; [C, r_i] if `across`."""

    matrices: Sequence[Tensor]
    across: bool


class Examples(NamedTuple):
    """The examples of M tokens.

    Attributes:
        starts: where each of E examples begins, and M; ascending, from 0.
        squares: float64 [E, 2 g], rows dense, on the device of the tokens: |dA_i,e|^2 of every projection and then
            |dB_i,e|^2; not finite where a value is not. Assigned by the backward pass. None: nobody wants them. With
            one column more it is the inner product of all dA_i,e and dB_i,e with the dA_i and dB_i they are summed to
            (ops.py), which costs two products of low rank.
    """

    starts: Sequence[int]
    squares: Tensor | None = None

    @property
    def counts(self) -> list[int]:
        """Tokens of each example."""
        return [stop - start for start, stop in zip(self.starts, self.starts[1:], strict=False)]

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


class Group(NamedTuple):
    """See above; weights and biases are frozen, the rest is fp32."""

    weights: Sequence[Tensor | NF4Weight]
    biases: Sequence[Tensor | None]
    lora_A: Sequence[Tensor]
    lora_B: Sequence[Tensor]
    scalings: Sequence[float]
    dropout: Dropout = NO_DROPOUT
    examples: Examples | None = None

    def dense(self, dtype: torch.dtype) -> Iterator[Tensor]:
        """The weights one after the other; an NF4 weight is decoded when its turn comes, and lives for it."""
        for weight, b in zip(self.weights, self.lora_B, strict=True):
            if isinstance(weight, Tensor):
                yield weight
            else:
                yield decode(weight, (b.shape[0], self.lora_A[0].shape[1]), dtype)

    @property
    def factors(self) -> list[float]:
        """s_i / (1 - p): the factor of dropout is part of the scaling everywhere."""
        kept = 1 - self.dropout.p
        return [s / kept for s in self.scalings]
