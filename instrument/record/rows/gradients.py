"""What each training row adds to a step: its loss, and the square of its gradient over every fused LoRA matrix.

    L_r               sum of the losses of row r's supervised tokens (or labels)
    g_r               gradient of scale L_r / N: what the row adds to the step's gradient, which is the sum of all g_r
    |g_r|^2           sum over modules of |dA_r|^2 + |dB_r|^2, the squares of kernels/lora_linear/group.py
    g_r . g_m         with the gradient of its micro-batch, every so many steps: what else shares the row's direction

A micro-batch's squares lie in one float64 [rows, columns], of which each group of modules fills its own 2 g columns,
and one more for the inner product, as its backward pass runs. Rings carry a step's values to the host, as the
recorder's.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from ..patch import Group
from ..ring import Ring, cloned

LOSS, SUMSQ, KNOWN, ALONG = 0, 1, 2, 3


@dataclass(frozen=True)
class RowWatching:
    """Which rows there are, and what is kept of them.

    Attributes:
        n_micro_batches: the most micro-batches one step has on this process.
        most_rows: the most rows a micro-batch has.
        every: every so many steps each module's share and the inner products are kept; 0: never.
        modules: shell patterns of modules whose shares are kept at every step.
        gather: stacks a tensor of every process, [W, ...]; None for one process.
    """

    n_micro_batches: int
    most_rows: int
    every: int = 0
    modules: Sequence[str] = ()
    gather: Callable[[torch.Tensor], torch.Tensor] | None = None


@dataclass(frozen=True)
class RowValues:
    """Of one step, over all processes; rows beyond those of a micro-batch are 0.

    Attributes:
        values: float64 [processes, micro-batches, most rows, 4]: L_r, |g_r|^2, whether that is known (0 where a module
            computed without saying which row is whose), and g_r . g_m, 0 on the steps between.
        modules: float64 [processes, micro-batches, most rows, modules], |g_r|^2 of each module, or None.
        every: whether those are of all modules, as every so many steps.
    """

    step: int
    values: torch.Tensor
    modules: torch.Tensor | None
    every: bool


class RowGradients:
    """Collects them for the groups of one model.

    Attributes:
        modules: names of the modules, in forward order.
        always: which of them are kept at every step.
        dropped: steps whose values were dropped because the host lagged behind.
    """

    def __init__(self, groups: Sequence[Group], device: torch.device, watching: RowWatching):
        self.watching, self._groups = watching, list(groups)
        self.modules = [name for group in groups for name in group.names]
        self.always = [any(fnmatch.fnmatchcase(name, p) for p in watching.modules) for name in self.modules]
        n_micro, most = watching.n_micro_batches, watching.most_rows
        n_columns, widths = 2 * len(self.modules), [2 * len(group.names) for group in groups]
        self._first = dict(zip(map(id, groups), _starts(widths), strict=True))
        self._squares = torch.zeros(most, n_columns, dtype=torch.float64, device=device)
        # the same with a column more behind those of every group, and where either kind of column lies
        n_wide = n_columns + len(groups) if watching.every else 0
        self._wide = torch.zeros(most, n_wide, dtype=torch.float64, device=device)
        products = [first + width for first, width in zip(_starts([w + 1 for w in widths]), widths, strict=True)]
        self._of_products = torch.tensor(products, dtype=torch.int64, device=device)
        others = sorted(set(range(n_columns + len(groups))) - set(products))
        self._of_squares = torch.tensor(others, dtype=torch.int64, device=device)
        columns = [(first + i, first + len(g.names) + i) for g in groups for first in [self._first[id(g)]]
                   for i in range(len(g.names))]  # fmt: skip
        self._of_module = torch.tensor(columns, dtype=torch.int64, device=device).reshape(-1, 2)
        self._values = torch.zeros(n_micro, most, 4, dtype=torch.float64, device=device)
        n_processes = 1 if watching.gather is None else watching.gather(torch.zeros(1, device=device)).shape[0]
        self._ring = Ring((n_processes, n_micro, most, 4), device, may_drop=True)
        self._module_shape = n_processes, n_micro, most, len(self.modules)
        self._module_ring: Ring | None = None
        self._shares: torch.Tensor | None = None
        self._device, self._micro, self._n_rows, self._unknown = device, -1, 0, False

    def begin_step(self, step: int) -> None:
        """Clears the values."""
        self._forget()
        self._step, self._micro = step, -1
        self._values.zero_()
        wanted = any(self.always) or self._takes_all(step)
        self._shares = self._squares.new_zeros(self._module_shape[1:]) if wanted else None

    def begin_micro_batch(self, starts: Sequence[int]) -> None:
        """Points every group at its columns of the next micro-batch, whose rows begin at these tokens.

        Args:
            starts: of each row, and the number of all tokens.
        """
        self._end_micro_batch()
        self._micro += 1
        self._n_rows = len(starts) - 1
        assert self._n_rows <= self.watching.most_rows, "more rows than there was room made for"
        takes_all = self._takes_all(self._step)
        squares = (self._wide if takes_all else self._squares)[: self._n_rows].zero_()
        for number, group in enumerate(self._groups):
            first = self._first[id(group)] + (number if takes_all else 0)
            group.squares = squares[:, first : first + 2 * len(group.names) + takes_all]
            group.lost_rows = self._lose

    def losses(self, sums: torch.Tensor) -> None:
        """The loss sum of each row of the micro-batch, float64 [rows]."""
        self._values[self._micro, : self._n_rows, LOSS] = sums.detach()

    def _lose(self) -> None:
        self._unknown = True

    def _end_micro_batch(self) -> None:
        if self._micro >= 0 and self._n_rows:
            squares = self._squares[: self._n_rows]
            values = self._values[self._micro, : self._n_rows]
            if self._takes_all(self._step):
                wide = self._wide[: self._n_rows]
                squares, values[:, ALONG] = wide[:, self._of_squares], wide[:, self._of_products].sum(1)
            values[:, SUMSQ] = squares.sum(1)
            values[:, KNOWN] = 0.0 if self._unknown else 1.0
            if self._shares is not None:
                self._shares[self._micro, : self._n_rows] = squares[:, self._of_module].sum(-1)
        self._n_rows, self._unknown = 0, False

    def _takes_all(self, step: int) -> bool:
        return bool(self.watching.every and step % self.watching.every == 0)

    def finish_step(self, scale: torch.Tensor | None, keep: bool = True) -> None:
        """Sends the step's values on their way; until the next one no group counts.

        Args:
            scale: what the loss was multiplied by, [].
            keep: False for a step that nobody is to read.
        """
        self._end_micro_batch()
        self._forget()
        if not keep:
            return
        if scale is not None:
            for squares in (self._values[..., SUMSQ], self._values[..., ALONG], self._shares):
                if squares is not None:
                    squares /= scale.double().square()
        gather = self.watching.gather or (lambda tensor: tensor[None])
        if self._shares is not None:
            if self._module_ring is None:
                self._module_ring = Ring(self._module_shape, self._device, n_slots=2, may_drop=True)
            self._module_ring.push(self._step, gather(self._shares))
        self._ring.push(self._step, gather(self._values))

    def _forget(self) -> None:
        for group in self._groups:
            group.squares = group.lost_rows = None

    def ready(self, last: float = math.inf) -> Iterator[RowValues]:
        """Steps up to `last` whose values have arrived."""
        yield from self._paired(self._ring.ready(last), wait=False)

    def drain(self) -> Iterator[RowValues]:
        """All steps, waiting for those on their way."""
        yield from self._paired(self._ring.drain(), wait=True)

    def _paired(self, rows: Iterator[tuple[int, torch.Tensor]], wait: bool) -> Iterator[RowValues]:
        shares: dict[int, torch.Tensor] = {}
        for step, values in rows:
            if self._module_ring is not None:  # a step's modules are pushed before its rows, and have arrived with them
                arrived = self._module_ring.drain() if wait else self._module_ring.ready(step)
                shares.update(cloned(arrived))
            yield RowValues(step, values.clone(), shares.pop(step, None), self._takes_all(step))

    @property
    def dropped(self) -> int:
        return self._ring.dropped + (0 if self._module_ring is None else self._module_ring.dropped)


def _starts(counts: Sequence[int]) -> list[int]:
    found, at = [], 0
    for count in counts:
        found.append(at)
        at += count
    return found
