"""What goes on while nothing is printed: importing, loading, tokenizing, evaluating, saving, and the time that is left.

On a terminal alone, below what is printed, and gone when it is over. A pipe, NO_COLOR, a notebook and all but one of
several processes see nothing of it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ..instrument.messages import say
from .terminal import Terminal

if TYPE_CHECKING:
    from rich.progress import Progress

Item = TypeVar("Item")
# Modules that torch, transformers and peft import, within a tenth: their releases differ, and so do the verbs.
MODULES = 4_200
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
        total: of what; None: not known, and only the time that has passed is shown. A phase within it may know.
    """
    if not is_shown():
        yield lambda done: None
        return
    if _bars:
        with _line(_bars[-1], text, total) as advance:
            yield advance
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        ProgressColumn,
        SpinnerColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Count(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text("" if task.total is None else f"{task.completed:,.0f}/{task.total:,.0f}")

    text_of = TextColumn("{task.description}", markup=False)
    columns = [SpinnerColumn(), text_of, BarColumn(bar_width=30), Count(), TimeRemainingColumn(), TimeElapsedColumn()]
    out: Any = Terminal()
    with Progress(*columns, transient=True, console=Console(file=out)) as bar:
        attach(bar)
        try:
            with _line(bar, text, total) as advance:
                yield advance
        finally:
            detach(bar)


@contextmanager
def importing() -> Iterator[None]:
    """The phase of what a verb imports: torch and what stands on it take seconds."""
    with phase(say("phase.importing"), MODULES) as advance:
        finder: Any = _Asked(advance)
        sys.meta_path.insert(0, finder)
        try:
            yield
        finally:
            sys.meta_path.remove(finder)


class _Asked:
    """Is asked for every module before it is looked for, and finds none."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self.advance = advance

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        self.advance(1)


@contextmanager
def _line(bar: Progress, text: str, total: int | None) -> Iterator[Callable[[int], None]]:
    task = bar.add_task(text, total=total)
    try:
        yield lambda done: bar.advance(task, done)
    finally:
        bar.remove_task(task)


class Counted(Generic[Item]):
    """Items of a loop that somebody else writes, told of as a phase while they are gone through."""

    def __init__(self, items: Collection[Item], text: str) -> None:
        self.items, self.text = items, text

    def __iter__(self) -> Iterator[Item]:
        with phase(self.text, len(self.items)) as advance:
            for item in self.items:
                yield item
                advance(1)
