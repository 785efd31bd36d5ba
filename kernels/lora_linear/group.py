"""The projections of a group, as one call computes with them: W_i [N_i, K], A_i [r_i, K], B_i [N_i, r_i], bias_i [N_i].

Formulas are in __init__.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..frozen.nf4 import NF4Weight, decode
from .examples import Examples


class Dropout(NamedTuple):
    """Which values of X do not count: a function of a seed tensor, int64 of one element, and of their place."""

    seed: Tensor | None = None
    p: float = 0.0


NO_DROPOUT = Dropout()


class Factor(NamedTuple):
    """The right factors of a product of low rank: [r_i, C], one below the other; [C, r_i] if `across`."""

    matrices: Sequence[Tensor]
    across: bool


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
