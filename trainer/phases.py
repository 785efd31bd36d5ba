"""What goes on while nothing is printed: importing, loading, tokenizing, evaluating, saving, and the time that is left.

On a terminal alone, below what is printed, and gone when it is over. A pipe, NO_COLOR, a notebook and all but one of
several processes see nothing of it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

_bars: list[Progress] = []
"""The progress that is on the screen; a phase within it is another line of it."""


def is_shown() -> bool:
    """Whether anybody watches."""
    plain = not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return not plain and os.environ.get("RANK", "0") == "0"


def attach(bar: Progress) -> None:
    """The bar of a run: phases are shown with it until it is detached."""
    _bars.append(bar)


def detach(bar: Progress) -> None:
    """The bar is gone."""
    if bar in _bars:
        _bars.remove(bar)


@contextmanager
def phase(text: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Shows a phase while the block runs; what it gives is told how many of `total` are done since the last time.

    Args:
        text: what is done.
        total: of what; None: not known, and only the time that has passed is shown.
    """
    if not is_shown():
        yield lambda done: None
        return
    if _bars:
        with _line(_bars[-1], text, total) as advance:
            yield advance
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = [SpinnerColumn(), TextColumn("{task.description}", markup=False)]
    if total is not None:
        columns += [
            BarColumn(bar_width=30),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
            TimeRemainingColumn(),
        ]
    with Progress(*columns, TimeElapsedColumn(), transient=True) as bar:
        attach(bar)
        try:
            with _line(bar, text, total) as advance:
                yield advance
        finally:
            detach(bar)


@contextmanager
def _line(bar: Progress, text: str, total: int | None) -> Iterator[Callable[[int], None]]:
    task = bar.add_task(text, total=total)
    try:
        yield lambda done: bar.advance(task, done)
    finally:
        bar.remove_task(task)
