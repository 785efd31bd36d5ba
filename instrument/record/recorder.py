"""Collects the statistics of a step on the device and brings them to the host without ever waiting for it.

    buffer  float64 [micro-batches, sites, 9]      each kernel assigns its rows to its slot (hooks/passes.py)
    step    float64 [sites, 12]                    sums over micro-batches and processes, maxima, first bad one

A ring (ring.py) carries a step's rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from ...kernels.statistics.pending_rows import PendingRows
from ...kernels.statistics.tensor_stats import FIELDS, N_FIELDS, exponent_histogram
from ..read.store import COLUMNS, Site
from . import sites as site_tables
from .hooks.passes import N_EXPONENTS, SMALL, Passes, Rows, first_bad
from .hooks.unfused import Unfused
from .patch import Group, Patched
from .probe import Probe
from .ring import Ring, cloned
from .rows.gradients import RowGradients
from .sites import Watching

_SUMSQ, _ABSMAX, _N_NAN, _N_INF = (FIELDS.index(name) for name in ("sumsq", "absmax", "n_nan", "n_inf"))
_MICRO_SUMSQ, _BAD_MICRO, _BAD_RANK = (COLUMNS.index(n) for n in ("micro_sumsq", "first_bad_micro", "first_bad_rank"))


class Recorder:
    """The statistics of one model in training.

    Attributes:
        watching: what it looks at, and how often.
        passes: which passes of the model count.
        sites: what is kept, in the order of the rows that `ready` and `drain` hand out.
        rows: what each training row adds to a step; None: nobody says where rows begin.
        dropped: steps whose rows or histograms were dropped because the host lagged behind.
    """

    def __init__(
        self,
        patched: Patched,
        parameters: Sequence[nn.Parameter],
        run_once: Callable[[], Any],
        device: torch.device,
        watching: Watching,
    ):
        """
        Args:
            patched: what `patch` returned.
            parameters: the trained parameters, in the order of the gradient rows `finish` gets.
            run_once: runs a forward on a few tokens, so that `watch` calls in it are found.
            device: of the model.
            watching: what is looked at, and how often.
        """
        self.watching, self._patched, self._device = watching, patched, device
        self._gather, self._assign = watching.gather, watching.guarded(Rows.write)
        self._watched: dict[str, int] = {}
        self._discovering = False
        self._pending = PendingRows()
        self._probed = watching.model if watching.probe_every else None
        self._probe: Probe | None = None
        self._index_sites(run_once)
        layers = [*(group.modules[0] for group in patched.groups), *(module for _, module, _ in patched.unfused)]
        first_layer = next(iter([*layers, *(layer.module for layer in patched.others)]), None)
        self.passes = Passes(watching.n_micro_batches, len(self._all_sites), device, first_layer)
        self._group_rows: Rows | None = None
        self._views = [
            [self.passes.buffer[micro, first : first + 2 + 4 * len(group.names)] for group, first in self._groups]
            for micro in range(watching.n_micro_batches)
        ]
        self.pair_gradients(parameters)
        keep = [index for index, kept in enumerate(self._kept) if kept]
        self._keep = torch.tensor(keep, dtype=torch.int64, device=device)
        self.sites = [replace(self._all_sites[index], id=row) for row, index in enumerate(keep)]
        self._ring = Ring((len(keep), len(COLUMNS)), device, may_drop=True)
        self._exponent_ring = Ring((len(keep), N_EXPONENTS), device, n_slots=1, may_drop=True)
        self.rows = RowGradients(patched.groups, device, watching.rows) if watching.rows else None

    def _index_sites(self, run_once: Callable[[], Any]) -> None:
        self._all_sites: list[Site] = []
        self._groups: list[tuple[Group, int]] = []
        order = 0
        for order, group in enumerate(self._patched.groups):
            self._groups.append((group, len(self._all_sites)))
            self._all_sites += site_tables.group_sites(group, len(self._all_sites), order)
        self._first_row = {id(group): first for group, first in self._groups}
        self._unfused: list[Unfused] = []
        for name, module, _ in self._patched.unfused:
            order += 1
            sites = site_tables.module_sites(name, module, len(self._all_sites), order)
            self._unfused.append(Unfused(module, sites, self._record))
            self._all_sites += sites
        self._other_parameters: dict[int, nn.Parameter] = {}
        for layer in self._patched.others:
            order += 1
            sites = site_tables.layer_sites(layer, len(self._all_sites), order)
            self._unfused.append(Unfused(layer.module, sites, self._record))
            self._other_parameters |= {s.id: layer.parameters[s.tensor] for s in sites if s.tensor in layer.parameters}
            self._all_sites += sites
        self._all_sites = [site_tables.in_float32(site, self.watching.float32) for site in self._all_sites]
        self._discovering = True
        with torch.no_grad(), self.active():
            run_once()
            if self._probed is not None:
                hooked = {layer.module for layer in self._patched.others if layer.tensors}
                self._probe = Probe(self._probed, run_once, len(self._all_sites), order + 1, hooked)
                self._all_sites += self._probe.sites
        self._discovering = False
        self._kept = site_tables.selected(self._all_sites, self.watching.patterns)
        for unfused in self._unfused:
            unfused.keep(self._kept)

    def pair_gradients(self, parameters: Sequence[nn.Parameter]) -> bool:
        """Pairs the sites of gradients with the positions of their parameters; those of the adapters active now.

        Returns:
            whether every parameter has a site.
        """
        self._gradient_pairs = site_tables.gradient_pairs(
            self._all_sites, self._patched, self._other_parameters, parameters
        )
        sites, wanted = [site for site, _ in self._gradient_pairs], [at for _, at in self._gradient_pairs]
        self._gradient_rows = torch.tensor(sites, dtype=torch.int64, device=self._device)
        self._gradient_parameters = torch.tensor(wanted, dtype=torch.int64, device=self._device)
        return set(wanted) == set(range(len(parameters)))

    @contextmanager
    def active(self) -> Iterator[None]:
        """While it lasts, `watch` and the hooks of unfused modules record into this recorder."""
        global _active
        before, _active = _active, self
        handles = [handle for unfused in self._unfused for handle in unfused.hook()]
        if self.watching.micro_gradients:
            handles += [p.register_hook(partial(self._added, site)) for site, p in self._other_parameters.items()]
        for group, _ in self._groups:
            group.recorded = self._slot
        try:
            yield
        finally:
            _active = before
            for handle in handles:
                handle.remove()
            if self._probe is not None:
                self._probe.end()
            for group, _ in self._groups:
                group.slot = group.pending = group.observer = group.recorded = None
            self._pending.flush()

    def begin_step(self, step: int, look: bool = False) -> None:
        """Clears the rows; `step` counts from 1. `look`: count exponents and probe modules whatever step it is."""
        self._step, self._looks = step, look
        if self.rows is not None:
            self.rows.begin_step(step)
        self._pending.clear()  # of a step that was given up
        every = self.watching.histogram_every
        self.passes.begin_step(bool(every and (look or step % every == 0)))

    def begin_micro_batch(self, starts: Sequence[int] = ()) -> None:
        """Points every fused group at its rows of the next micro-batch.

        Args:
            starts: where each training row begins among its tokens, and their number; needed if there are `rows`.
        """
        self._pending.flush()
        if self.rows is not None:
            self.rows.begin_micro_batch(starts)
        self.passes.begin_micro_batch()
        observer = self if self.passes.exponents is not None else None
        for (group, _), view in zip(self._groups, self._views[self.passes.micro], strict=True):
            group.slot, group.pending, group.observer = view, self._pending, observer
        if self._probe is not None:
            self._probe.end()
            if self.passes.micro == 0 and (self._looks or self._step % self.watching.probe_every == 0):
                self._probe.begin(partial(self._record, gradient_row=None))

    def finish_step(
        self,
        gradient_rows: torch.Tensor,
        gradients: Sequence[torch.Tensor],
        keep: bool = True,
        scale: torch.Tensor | None = None,
    ) -> None:
        """Reduces the step on the device and sends it on its way; until the next one no group records.

        Args:
            gradient_rows: float64 [parameters, 9], statistics of the accumulated, all-reduced gradients.
            gradients: those gradients; looked at where `counts_exponents`.
            keep: False for a step that nobody is to read.
            scale: of the loss, by which the gradients of `rows` are divided.
        """
        if self._probe is not None:
            self._probe.end()
        self._pending.flush()
        for group, _ in self._groups:  # an evaluation would write into the rows of this step
            group.slot = group.pending = group.observer = None
        n_micro_batches = self.passes.add_up()
        rows = self._reduced(n_micro_batches)
        rows[self._gradient_rows, :N_FIELDS] = gradient_rows[self._gradient_parameters]
        if self.passes.exponents is not None:
            assert self.passes.small is not None
            small = self.passes.small[:n_micro_batches].sum(0)
            rows[:, SMALL] = torch.where(small.isnan(), rows[:, SMALL], small)
            exponents = self.passes.exponents[:n_micro_batches].sum(0)
            if self._gather is not None:
                exponents = self._gather(exponents).sum(0)
            for site, parameter in self._gradient_pairs:
                exponents[site] = exponent_histogram(gradients[parameter])
            if keep:
                self._exponent_ring.push(self._step, exponents[self._keep].double())
        if keep:
            self._ring.push(self._step, rows[self._keep])
        if self.rows is not None:
            self.rows.finish_step(scale, keep)
        self.passes.end()

    def _reduced(self, n_micro_batches: int) -> torch.Tensor:
        """Rows [sites, 12] of this step over micro-batches and processes."""
        rows = torch.full((len(self._all_sites), len(COLUMNS)), torch.nan, dtype=torch.float64, device=self._device)
        rows[:, :N_FIELDS] = 0
        if n_micro_batches:
            micro = self.passes.buffer[:n_micro_batches]
            rows[:, :N_FIELDS] = micro.sum(0)
            rows[:, _ABSMAX] = micro[..., _ABSMAX].amax(0)
            rows[:, _BAD_MICRO] = first_bad(micro[..., _N_NAN] + micro[..., _N_INF] > 0)
            if self._probe is not None and self._probe.sites:
                probed = slice(self._probe.sites[0].id, self._probe.sites[-1].id + 1)
                rows[probed, :N_FIELDS] = micro[0, probed]
        rows[self._gradient_rows, _MICRO_SUMSQ] = rows[self._gradient_rows, _SUMSQ]
        if self._gather is None:
            rows[:, _BAD_RANK] = rows[:, _BAD_MICRO] * 0
            return rows
        ranks = self._gather(rows)
        total = ranks.sum(0)
        total[:, _ABSMAX] = ranks[..., _ABSMAX].amax(0)
        first = ranks[..., _BAD_MICRO].nan_to_num(torch.inf)
        total[:, _BAD_MICRO] = torch.where(first.amin(0).isinf(), torch.nan, first.amin(0))
        total[:, _BAD_RANK] = torch.where(first.amin(0).isinf(), torch.nan, first.argmin(0).double())
        return total

    def ready(self, last: float = math.inf) -> Iterator[tuple[int, torch.Tensor, torch.Tensor | None]]:
        """(step, rows [kept sites, 12], exponents [kept sites, 256] or None) up to `last` that have arrived."""
        yield from self._paired(self._ring.ready(last), dict(cloned(self._exponent_ring.ready())))

    def drain(self) -> Iterator[tuple[int, torch.Tensor, torch.Tensor | None]]:
        """The same for all rows, waiting for those on their way."""
        yield from self._paired(self._ring.drain(), dict(cloned(self._exponent_ring.drain())))

    def _paired(self, rows: Iterator, exponents: dict[int, torch.Tensor]) -> Iterator:
        # A step's exponents are pushed before its rows, so they have arrived when its rows have.
        for step, values in rows:
            exponents.update(cloned(self._exponent_ring.ready()))
            yield step, values, exponents.pop(step, None)

    @property
    def counts_exponents(self) -> bool:
        """Whether this step has histograms."""
        return self.passes.exponents is not None

    @property
    def dropped(self) -> int:
        return self._ring.dropped + self._exponent_ring.dropped + (self.rows.dropped if self.rows else 0)

    def watch(self, name: str, tensor: torch.Tensor) -> None:
        """Records a tensor of the user's choice and its gradient, see `watch`."""
        if self._discovering and name not in self._watched:
            self._watched[name] = len(self._all_sites)
            order = max((site.forward_order for site in self._all_sites), default=-1) + 1
            for kind in ("out", "grad_out"):
                dtype = str(tensor.dtype).removeprefix("torch.")
                shape = tuple(tensor.shape[-1:])
                self._all_sites.append(Site(len(self._all_sites), name, kind, shape, dtype, order))
        elif name in self._watched:
            self._record(self._watched[name], tensor, self._watched[name] + 1)

    def _record(self, row: int, tensor: torch.Tensor, gradient_row: int | None) -> None:
        """Statistics of a tensor now, and of its gradient when it comes."""
        found = None if self._discovering else self.passes.at(row)
        if found is None:
            return
        self._assign(found[1], row, tensor.detach())
        if tensor.requires_grad and gradient_row is not None:
            tensor.register_hook(lambda grad: self._assign(found[1], gradient_row, grad))

    def _added(self, row: int, gradient: torch.Tensor) -> None:
        """What the backward pass of a micro-batch adds to a parameter's gradient."""
        if (rows := self.passes.of_micro_batch()) is not None:
            self._assign(rows, row, gradient)

    def _slot(self, group: Group) -> torch.Tensor | None:
        """Where the pass that begins at this group writes; None if it is not recorded."""
        first = self._first_row[id(group)]
        found = self.passes.at(first) if group.slot is not None else None
        if found is None:
            return None
        k, self._group_rows = found
        if k and group.lost_rows is not None:
            group.lost_rows()
        return group.slot if k == 0 else self._group_rows.stats[first : first + 2 + 4 * len(group.names)]

    def input(self, group: Group, x: torch.Tensor) -> torch.Tensor:
        """Patch's observer on histogram steps: counts exponents of `in` now and of `grad_in` when it comes."""
        first = self._first_row[id(group)]
        x = x.view_as(x)  # its gradient is this group's share, not the sum over all readers of x
        self._look(first, x, first + 1 + 2 * len(group.names))
        return x

    def outputs(self, group: Group, outputs: list[torch.Tensor]) -> list[torch.Tensor]:
        """Likewise `out` and `grad_out` of each module."""
        first = self._first_row[id(group)] + 1
        for index, output in enumerate(outputs):
            self._look(first + index, output, first + len(outputs) + index)
        return outputs

    def _look(self, row: int, tensor: torch.Tensor, gradient_row: int) -> None:
        rows = self._group_rows
        assert rows is not None
        rows.count(row, tensor.detach())
        if tensor.requires_grad:
            tensor.register_hook(lambda grad: rows.count(gradient_row, grad))


_active: Recorder | None = None


def watch(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Records statistics of a tensor of your own, and of its gradient, at every step.

    Call it in a model's forward. Sites are fixed by the first forward pass: a name that does not appear in it is not
    recorded. Outside a recorded run it does nothing.

    Args:
        name: what the sites are called: `<name>:out` and `<name>:grad_out`.
        tensor: any float tensor.

    Returns:
        the tensor itself.
    """
    if _active is not None:
        _active.watch(name, tensor)
    return tensor
