"""What the user sees while a run goes on: a bar on a terminal, plain lines elsewhere and with NO_COLOR."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from ..instrument.messages import say
from .errors import tell
from .phases import attach, detach
from .terminal import Terminal


class Console:
    """Prints lines, and on a terminal keeps a progress bar below them.

    Attributes:
        silent: says nothing, as all but one of several processes.
    """

    def __init__(self, silent: bool = False):
        self.silent = silent
        self._out: Any = Terminal()
        self._rich = RichConsole(highlight=False, soft_wrap=True, file=self._out)
        self._bar: Progress | None = None
        self._plain = not sys.stdout.isatty() or bool(os.environ.get("NO_COLOR"))

    def line(self, text: str) -> None:
        """One line of text, as it is: user data may hold brackets and braces."""
        if self.silent:
            return
        if self._plain:
            print(text, file=self._out, flush=True)
        else:
            self._rich.print(text, markup=False)

    def spans(self, pieces: Sequence[tuple[str, bool]]) -> None:
        """Text in pieces, some of them marked: in green on a terminal, where the others are dim, else in ⟦ ⟧."""
        if self.silent:
            return
        if self._plain:
            print("".join(f"⟦{text}⟧" if marked else text for text, marked in pieces), file=self._out, flush=True)
        else:
            self._rich.print(Text.assemble(*((text, "green" if marked else "dim") for text, marked in pieces)))

    def warn(self, text: str) -> None:
        """One warning."""
        self.line(say("warn.line", text=text))

    def begin(self, step: int, n_steps: int) -> None:
        """Starts the bar, if there is one."""
        if self._plain or self.silent:
            return
        columns = (BarColumn(bar_width=40), MofNCompleteColumn(), TextColumn("{task.description}"))
        self._bar = Progress(*columns, console=self._rich, transient=True)
        self._bar.add_task("", completed=step, total=n_steps)
        self._bar.start()
        attach(self._bar)

    def advance(self, step: int, text: str) -> None:
        """Moves the bar."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, description=text)

    def end(self) -> None:
        """Removes the bar."""
        if self._bar is not None:
            detach(self._bar)
            self._bar.stop()
            self._bar = None


def note(sentence: str) -> None:
    """A sentence on standard error before a run has a console; of several processes one says it."""
    if os.environ.get("RANK", "0") == "0":
        tell(say("note.line", text=sentence))


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: 12:51:40."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


def compact(value: float | None) -> str:
    """A number for a log line: three or four significant digits, `nan` for what is not finite."""
    return "nan" if value is None or value != value or abs(value) == float("inf") else f"{value:.4g}"


def quiet_libraries() -> None:
    """Keeps other libraries' notes for their developers out of the log of a run; errors still show."""
    # transformers 5.2x renames these; peft and older releases know the old names only
    warnings.filterwarnings("ignore", message="`(is_)?gradient_checkpointing(_enable)?` is deprecated")
    # said in the banner where it matters
    warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")
