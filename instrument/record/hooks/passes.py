"""Which passes of a model are recorded, and where the rows of each go.

    rows    float64 [sites, 9]     of one forward pass and its backward pass
    place   (micro-batch, k)       the k-th pass of that micro-batch at a site

A pass is recorded if it takes part in the training of a micro-batch: with gradient, with the adapter on, and in the
mode (training or not) that the model was in when the micro-batch began. A reference model's pass, generation and an
evaluation in between are not. Where a loss takes several passes (a preferred and a rejected answer), each has rows of
its own, which are added up when the step ends. A pass that is computed again in the backward pass, by activation
checkpointing, writes the same rows again. If there are several, they trade places, and the sum stays what it is.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ....kernels.statistics.tensor_stats import FIELDS, N_FIELDS, exponent_histogram, tensor_stats

N_EXPONENTS = 256
SMALL = slice(FIELDS.index("n_subnormal"), FIELDS.index("n_zero") + 1)
_ABSMAX = FIELDS.index("absmax")


@dataclass
class Rows:
    """Of one pass.

    Attributes:
        stats: float64 [sites, 9]; NaN where nothing was written.
        exponents: int64 [sites, 256], or None on a step without histograms.
        small: float64 [sites, 2], subnormals and zeros of float32 tensors; None likewise.
    """

    stats: torch.Tensor
    exponents: torch.Tensor | None = None
    small: torch.Tensor | None = None

    def another(self) -> Rows:
        """Rows of the same shapes with nothing in them."""
        exponents = None if self.exponents is None else torch.zeros_like(self.exponents)
        small = None if self.small is None else torch.full_like(self.small, torch.nan)
        return Rows(torch.full_like(self.stats, torch.nan), exponents, small)

    def write(self, row: int, tensor: torch.Tensor) -> None:
        """Statistics of a tensor, and its exponents where they are counted."""
        self.stats[row] = tensor_stats(tensor, full=self.exponents is not None)
        if self.exponents is not None:
            self.exponents[row] = exponent_histogram(tensor)

    def count(self, row: int, tensor: torch.Tensor) -> None:
        """The exponents alone, and what the fused operator does not count of float32."""
        assert self.exponents is not None
        assert self.small is not None
        self.exponents[row] = exponent_histogram(tensor)
        if tensor.dtype == torch.float32:
            self.small[row] = tensor_stats(tensor, full=True)[SMALL]

    def add(self, other: Rows) -> None:
        """Adds a pass; a row that one of the two has not written is the other's."""
        total = self.stats + other.stats
        total[:, _ABSMAX] = torch.maximum(self.stats[:, _ABSMAX], other.stats[:, _ABSMAX])
        self.stats.copy_(_either(self.stats, other.stats, total))
        if self.exponents is not None and other.exponents is not None:
            self.exponents += other.exponents
        if self.small is not None and other.small is not None:
            self.small.copy_(_either(self.small, other.small, self.small + other.small))


def first_bad(bad: torch.Tensor) -> torch.Tensor:
    """Index of the first True along dim 0 as float64, NaN where there is none."""
    return torch.where(bad.any(0), bad.int().argmax(0).double(), torch.nan)


def _either(a: torch.Tensor, b: torch.Tensor, both: torch.Tensor) -> torch.Tensor:
    no_a, no_b = a.isnan().all(-1, keepdim=True), b.isnan().all(-1, keepdim=True)
    return torch.where(no_b, a, torch.where(no_a, b, both))


class Passes:
    """The rows of a step, and the place of a pass that is at a site."""

    def __init__(self, n_micro_batches: int, n_sites: int, device: torch.device, first_layer: nn.Module | None):
        """
        Args:
            first_layer: that is recorded; its mode, and whether its adapter is off, stand for those of the model. None:
                there is none, and every mode is recorded.
        """
        shape = (n_micro_batches, n_sites)
        self.buffer = torch.full((*shape, N_FIELDS), torch.nan, dtype=torch.float64, device=device)
        self.exponents: torch.Tensor | None = None
        self.small: torch.Tensor | None = None
        self.micro = -1
        self._first_layer, self._mode = first_layer, True
        self._rows: list[list[Rows]] = []
        self._seen: tuple[Counter[int], Counter[int]] = (Counter(), Counter())

    def begin_step(self, counts_exponents: bool) -> None:
        """Clears the rows."""
        self.end()
        self.buffer.fill_(torch.nan)
        self.exponents = self.small = None
        if counts_exponents:
            shape, device = self.buffer.shape[:2], self.buffer.device
            self.exponents = torch.zeros((*shape, N_EXPONENTS), dtype=torch.int64, device=device)
            self.small = torch.full((*shape, 2), torch.nan, dtype=torch.float64, device=device)

    def begin_micro_batch(self) -> None:
        """The passes that come are those of the next micro-batch."""
        self.micro += 1
        kinds = (self.buffer, self.exponents, self.small)
        stats, exponents, small = (None if kind is None else kind[self.micro] for kind in kinds)
        assert stats is not None
        self._rows.append([Rows(stats, exponents, small)])
        self._seen[0].clear()
        self._seen[1].clear()
        self._mode = self._first_layer is None or self._first_layer.training

    def end(self) -> None:
        """No pass is recorded any more until the next micro-batch begins."""
        self.micro = -1
        self._rows = []

    def are_recorded(self) -> bool:
        """Whether a pass that is at a site now is."""
        if self.micro < 0 or not torch.is_grad_enabled() or self.adapter_is_off():
            return False
        return self._first_layer is None or self._first_layer.training == self._mode

    def adapter_is_off(self) -> bool:
        """Whether what runs now is the model without its adapter."""
        layer = self._first_layer
        return isinstance(layer, BaseTunerLayer) and bool(layer.disable_adapters)

    def at(self, site: int) -> tuple[int, Rows] | None:
        """k and the rows of the pass that is at a site now; None if it is not recorded. Counts it."""
        if not self.are_recorded():
            return None
        seen = self._seen[torch._C._current_graph_task_id() != -1]  # pyright: ignore[reportAttributeAccessIssue]
        k = seen[site]
        seen[site] = k + 1
        rows = self._rows[self.micro]
        while len(rows) <= k:
            rows.append(rows[0].another())
        return k, rows[k]

    def of_micro_batch(self) -> Rows | None:
        """The rows of this micro-batch's first pass, for what is read once in it; None between steps."""
        return self._rows[self.micro][0] if self.micro >= 0 else None

    def add_up(self) -> int:
        """Adds the further passes of every micro-batch to its first one.

        Returns:
            micro-batches so far.
        """
        for rows in self._rows:
            while len(rows) > 1:
                rows[0].add(rows.pop())
        return self.micro + 1
