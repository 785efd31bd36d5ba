"""Rows of statistics that wait until one launch writes them all: the second stage of a whole micro-batch.

A kernel that counts leaves partials [P, 8] (reduce.py), and the row they belong to is known; what is missing is one
small sum, which is not worth a launch. So calls add their sites here, and `flush` makes every row at once: one
program a row, which reads a line of a table of addresses.

    row[f] = sum over the partials              as reduce.py, in the same order
    ONLY_COUNTS      all but n_nan, n_inf and n are null
    AFTER_PRODUCT    n_overflow = n_inf if none of the inputs had a non-finite value, else null
    NULL             all null

A line may also stand for a column of squares, of an example each (lora_linear/read/):

    out[e] = sum over the partials fp64 of e    SQUARES; those of an example that was cut lie elsewhere

What went into a product is named by up to two ranges of partials, of which columns n_nan and n_inf are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from ..backend import AotVariant, is_gpu, jit, on_device
from .reduce import BLOCK_P, FIELDS, N_FIELDS, N_PARTIALS, add_programs, store_row

ONLY_COUNTS, AFTER_PRODUCT, NULL, SQUARES = 1, 2, 3, 4
N_COLUMNS = 9
PARTIAL_BYTES, ROW_BYTES = 8 * N_PARTIALS, 8 * N_FIELDS

_ONLY_COUNTS, _AFTER_PRODUCT, _NULL = tl.constexpr(ONLY_COUNTS), tl.constexpr(AFTER_PRODUCT), tl.constexpr(NULL)
_SQUARES = tl.constexpr(SQUARES)
_EXAMPLES, _PROGRAMS = tl.constexpr(16), tl.constexpr(64)
_N_COLUMNS = tl.constexpr(N_COLUMNS)
_N_PARTIALS = tl.constexpr(N_PARTIALS)
_N_NAN = tl.constexpr(FIELDS.index("n_nan"))
_N_INF = tl.constexpr(FIELDS.index("n_inf"))
_N_OVERFLOW = tl.constexpr(FIELDS.index("n_overflow"))


class Partials(NamedTuple):
    """Some rows of a float64 [P, 8]: those of one tensor."""

    buffer: Tensor
    address: int
    count: int


def room(like: Tensor, n_programs: int, with_stats: bool) -> Tensor:
    """Memory for the partials of so many programs; without statistics any tensor, which no kernel looks at."""
    return like.new_empty((n_programs, N_PARTIALS), dtype=torch.float64) if with_stats else like


def regions(buffer: Tensor, counts: Sequence[int], with_stats: bool, first: int = 0) -> list[Partials]:
    """Partials of several tensors that lie one behind the other; none without statistics."""
    if not with_stats:
        return []
    found, address = [], buffer.data_ptr() + first * PARTIAL_BYTES
    for count in counts:
        found.append(Partials(buffer, address, count))
        address += count * PARTIAL_BYTES
    return found


NOTHING = Partials(torch.empty(0), 0, 0)


class PendingRows:
    """Rows not written yet. Keeps the partials alive until they are."""

    def __init__(self) -> None:
        self._table: list[tuple[int, ...]] = []
        self._kept: list[Tensor] = []

    def add(
        self,
        rows: Rows,
        index: int,
        partials: Partials,
        n: int,
        rule: int = 0,
        inputs: tuple[Partials, Partials] = (NOTHING, NOTHING),
    ) -> None:
        """A row to write.

        Args:
            index: which of the rows.
            partials: of its tensor; NOTHING with NULL.
            n: values of that tensor.
            rule: ONLY_COUNTS, AFTER_PRODUCT or NULL.
            inputs: of AFTER_PRODUCT, what went into the product; NOTHING for a second where there is one.
        """
        first, second = inputs
        where = rows.address + index * ROW_BYTES
        self._table.append((where, partials[1], partials[2], n, rule, first[1], first[2], second[1], second[2]))
        self._kept += (rows.slot, partials[0], first[0], second[0])

    def add_squares(self, into: Tensor, column: int, whole: Partials, cut: Partials, numbers: Partials) -> None:
        """A column of squares to write.

        Args:
            into: float64 [E, columns], rows dense.
            whole: float64 [E, count].
            cut: float64 [examples that were cut, count]; count 0 where none was.
            numbers: int32 [E], which of those that were cut each is, or -1.
        """
        where, stride, n = into.data_ptr() + 8 * column, into.stride(0), into.shape[0]
        self._table.append((where, whole[1], whole[2], n, SQUARES, numbers[1], cut[1], cut[2], stride))
        self._kept += (into, whole[0], cut[0], numbers[0])

    def flush(self) -> None:
        """Writes all rows; of a row added twice the later, which under checkpointing says the same again."""
        if not self._table:
            return
        device = self._kept[0].device
        table = torch.tensor(list({line[0]: line for line in self._table}.values()))
        if is_gpu(device):
            table = table.pin_memory().to(device, non_blocking=True)  # torch keeps the memory until the copy is over
        with on_device(table):
            _pending_rows_kernel[(len(table),)](table, num_warps=4, enable_fp_fusion=False)
        self.clear()

    def clear(self) -> None:
        """Forgets the rows: of a step that was given up."""
        self._table, self._kept = [], []


class Rows:
    """Where rows of statistics go.

    Attributes:
        slot: float64 [any, 9], contiguous.
        pending: writes them at its next flush.
        address: of the first row.
    """

    def __init__(self, slot: Tensor, pending: PendingRows | None = None, first: int = 0, count: int | None = None):
        """
        Args:
            pending: of somebody who flushes it; None: `end` writes the rows.
            first, count: which rows of the slot; all of them.
        """
        self.slot, self.address = slot, slot.data_ptr() + first * ROW_BYTES
        self.pending, self._is_own = pending or PendingRows(), pending is None
        self._first, self._count = first, slot.shape[0] if count is None else count

    def assign(self, rows: Tensor) -> None:
        """Writes all of them now."""
        self.slot[self._first : self._first + self._count].copy_(rows)

    def end(self) -> None:
        """Writes what was added, if nobody else will."""
        if self._is_own:
            self.pending.flush()


@jit
def _n_bad(address, count):
    """n_nan + n_inf of `count` partials."""
    pointer = address.to(tl.pointer_type(tl.float64))
    found = tl.zeros((BLOCK_P,), dtype=tl.float64)
    for start in range(0, count, BLOCK_P):
        programs = start + tl.arange(0, BLOCK_P).to(tl.int64)
        mask = programs < count
        found += tl.load(pointer + programs * _N_PARTIALS + _N_NAN, mask=mask, other=0.0)
        found += tl.load(pointer + programs * _N_PARTIALS + _N_INF, mask=mask, other=0.0)
    return tl.sum(found)


@jit
def _write_row(line, rule):
    row_ptr = tl.load(line).to(tl.pointer_type(tl.float64))
    row = add_programs(tl.load(line + 1).to(tl.pointer_type(tl.float64)), tl.load(line + 2))
    n_bad = _n_bad(tl.load(line + 5), tl.load(line + 6)) + _n_bad(tl.load(line + 7), tl.load(line + 8))
    columns = tl.arange(0, _N_PARTIALS)
    null = float("nan")
    is_count = (columns == _N_NAN) | (columns == _N_INF)
    # `maximum` has turned the null of absmax into 0
    row = tl.where((rule == _NULL) | ((rule == _ONLY_COUNTS) & ~is_count), null, row)
    overflow = tl.sum(tl.where(columns == _N_INF, row, 0.0))
    overflow = tl.where(n_bad == 0.0, overflow, row)
    row = tl.where((rule == _AFTER_PRODUCT) & (columns == _N_OVERFLOW), overflow, row)
    n = tl.load(line + 3).to(tl.float64)
    store_row(row, tl.where(rule == _NULL, null, n), row_ptr)


@jit
def _write_squares(line):
    out_ptr, out_stride = tl.load(line).to(tl.pointer_type(tl.float64)), tl.load(line + 8)
    whole_ptr, n_whole = tl.load(line + 1).to(tl.pointer_type(tl.float64)), tl.load(line + 2)
    cut_ptr, n_cut = tl.load(line + 6).to(tl.pointer_type(tl.float64)), tl.load(line + 7)
    n_examples, numbers_ptr = tl.load(line + 3), tl.load(line + 5).to(tl.pointer_type(tl.int32))
    for first in range(0, n_examples, _EXAMPLES):
        examples = first + tl.arange(0, _EXAMPLES).to(tl.int64)
        mask = examples < n_examples
        numbers = tl.load(numbers_ptr + examples, mask=mask, other=-1).to(tl.int64)
        total = tl.zeros((_EXAMPLES, _PROGRAMS), dtype=tl.float64)
        for start in range(0, tl.maximum(n_whole, n_cut), _PROGRAMS):
            programs = start + tl.arange(0, _PROGRAMS).to(tl.int64)
            is_whole = (mask & (numbers < 0))[:, None] & (programs < n_whole)[None, :]
            total += tl.load(whole_ptr + (examples * n_whole)[:, None] + programs[None, :], mask=is_whole, other=0.0)
            is_cut = (numbers >= 0)[:, None] & (programs < n_cut)[None, :]
            total += tl.load(cut_ptr + (numbers * n_cut)[:, None] + programs[None, :], mask=is_cut, other=0.0)
        tl.store(out_ptr + examples * out_stride, tl.sum(total, axis=1), mask=mask)


@jit
def _pending_rows_kernel(table_ptr):
    """One program per line of the table, int64 [rows, 9]."""
    line = table_ptr + tl.program_id(0).to(tl.int64) * _N_COLUMNS
    rule = tl.load(line + 4)
    if rule == _SQUARES:
        _write_squares(line)
    else:
        _write_row(line, rule)


def aot_variants() -> list[AotVariant]:
    """What `benchmarks/compile_kernels.py` compiles ahead of time."""
    return [AotVariant("pending rows", _pending_rows_kernel, {"table_ptr": "*i64"}, {}, ("table_ptr",))]
