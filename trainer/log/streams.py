"""The statistics of layers and rows on their way to disk: written as they arrive, given up where the disk refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ...instrument.judge.detect import Trouble
from ...instrument.messages import say
from ...instrument.read.row_log import ROWS, RowsWriter
from ...instrument.read.store import STATS, StatsWriter
from ...instrument.record.rows.gradients import ALONG, KNOWN, LOSS, SUMSQ, RowGradients, RowValues
from ..config.schema import Config
from ..console import Console
from ..data.batches import StepRows
from ..errors import Stopped, problem


def write_failed(config: Config, what: str, error: OSError) -> None:
    """Ends the run where training.on_write_error says so.

    Raises:
        Stopped: it does.
    """
    if config.training.on_write_error == "stop":
        raise Stopped(str(problem("run.stopped_by_disk", what=what, error=error))) from error


class Streams:
    """The streams of one start; on all but the main process they write nothing."""

    def __init__(self, config: Config, console: Console, stats: StatsWriter | None, rows: RowsWriter | None):
        self._config, self._console, self._stats, self._rows = config, console, stats, rows
        self._expected: dict[int, StepRows] = {}
        self._bad_rows: tuple[int, dict[tuple[int, int], list[int]], bool] = (0, {}, False)

    def expect(self, rows: StepRows) -> None:
        """Keeps which rows a step has until their values arrive."""
        self._expected[rows.step] = rows

    def write_statistics(self, step: int, rows: torch.Tensor, exponents: torch.Tensor | None, ends: bool) -> None:
        """Of the layers; `ends`: the run does, whatever the disk says."""
        stats = self._stats
        if stats is not None:
            counted = None if exponents is None else exponents.long().numpy()
            if not self._written(stats, lambda: stats.write(step, rows.numpy(), counted), step, STATS, ends):
                self._stats = None

    def receive_rows(self, rows: RowGradients | None, up_to: float, drain: bool, last: int | None) -> None:
        """Writes what has arrived of the rows up to a step; those after step `last` are dropped."""
        if rows is None:
            return
        for values in rows.drain() if drain else rows.ready(up_to):
            expected = self._expected.pop(values.step, None)
            if expected is not None and (last is None or values.step <= last):
                self._write_rows(values, expected, rows.always, ends=last is not None)
        if drain:
            self._expected.clear()

    def _write_rows(self, found: RowValues, rows: StepRows, always: list[bool], ends: bool) -> None:
        columns, where = row_columns(rows)
        at = (
            tuple(np.array(index, np.int64).reshape(-1) for index in zip(*where, strict=True))
            or (np.zeros(0, int),) * 3
        )
        values = found.values.numpy()[at]
        loss, sumsq, known = values[:, LOSS], values[:, SUMSQ], values[:, KNOWN] > 0
        bad = ~np.isfinite(loss)
        if not bad.any():  # while the loss scale still falls, gradients overflow in rows that are healthy
            bad = ~np.isfinite(sumsq) & known
        self._bad_rows = rows.step, _bad_rows(columns, bad), bool(bad.all())
        writer = self._rows
        if writer is None:
            return
        shares = None if found.modules is None else found.modules.numpy()[at]
        if shares is not None and not found.every:
            shares = np.where(always, shares, np.nan)
        along = values[:, ALONG] if found.every else None
        columns |= {"loss_sum": loss, "sumsq": sumsq, "along": along, "known": known}
        if not self._written(writer, lambda: writer.write(columns, shares), rows.step, ROWS, ends):
            self._rows = None

    def _written(self, stream: Any, write: Callable[[], None], step: int, what: str, ends: bool) -> bool:
        """Whether it was; if not, the stream is given up."""
        try:
            write()
        except OSError as error:
            stream.abandon()
            if not ends:
                write_failed(self._config, what, error)
            self._console.warn(say("stats.failed" if what == STATS else "rows.failed", step=step, what=error))
            return False
        return True

    def with_bad_rows(self, trouble: Trouble) -> Trouble:
        """The same trouble and its step's bad rows, if that step was the last to arrive."""
        step, rows, all_bad = self._bad_rows
        return replace(trouble, bad_rows=rows, all_bad=all_bad) if step == trouble.step else trouble

    def open(self) -> list[Any]:
        """Those that are still written to."""
        return [stream for stream in (self._stats, self._rows) if stream is not None]


def row_columns(rows: StepRows) -> tuple[dict[str, Any], list[tuple[int, int, int]]]:
    """What the host knows of a step's rows, and where each lies: (process, micro-batch, place in it)."""
    places = [
        (process, micro, at, example)
        for micro, shares in enumerate(rows.shares)
        for process, share in enumerate(shares)
        for at, example in enumerate(share)
    ]
    columns = {
        "step": [rows.step] * len(places),
        "micro_batch": [micro for _, micro, _, _ in places],
        "process": [process for process, _, _, _ in places],
        "row": [example.row for *_, example in places],
        "n_tokens": [len(example.input_ids) for *_, example in places],
        "n_supervised": [example.n_supervised for *_, example in places],
    }
    return columns, _recorded_places(places)


def _recorded_places(places: list[tuple[int, int, int, Any]]) -> list[tuple[int, int, int]]:
    """A process counts the micro-batches in which it has rows."""
    numbers: dict[tuple[int, int], int] = {}
    counts: dict[int, int] = {}
    for process, micro, _, _ in places:
        if (process, micro) not in numbers:
            numbers[process, micro] = counts[process] = counts.get(process, -1) + 1
    return [(process, numbers[process, micro], at) for process, micro, at, _ in places]


def _bad_rows(columns: dict[str, Any], bad: np.ndarray) -> dict[tuple[int, int], list[int]]:
    """By (micro-batch, process); where every one of several rows is bad, the weights are, and no row."""
    found: dict[tuple[int, int], list[int]] = {}
    places = list(zip(columns["micro_batch"], columns["process"], strict=True))
    for place in dict.fromkeys(places):
        own = [at for at, other in enumerate(places) if other == place]
        rows = [columns["row"][at] for at in own if bad[at]]
        if rows and (len(rows) < len(own) or len(own) == 1):
            found[place] = rows
    return found
