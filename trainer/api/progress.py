"""The progress of a run in a notebook: one bar that moves, with the lines of the log printed below it."""

from __future__ import annotations

import html
import sys
import time
from typing import Any

from ..console import Console

# Seconds between two looks of a reader: a kernel's messages are not for free.
PAUSE = 0.2


def in_notebook() -> bool:
    """Whether a Jupyter kernel runs this process, which shows HTML; IPython on a terminal does not."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


class NotebookConsole(Console):
    """Prints lines, and shows the bar as HTML that is replaced in place."""

    def __init__(self) -> None:
        super().__init__()
        self._plain = True
        self._handle: Any = None
        self._last = (0, 1, "")
        self._shown = 0.0

    def begin(self, step: int, n_steps: int) -> None:
        if self.silent:
            return
        from IPython.display import HTML, display  # pyright: ignore[reportMissingImports] # a notebook has it

        self._last = (step, n_steps, "")
        self._handle = display(HTML(bar(*self._last)), display_id=True)

    def advance(self, step: int, text: str) -> None:
        self._last = (step, self._last[1], text)
        if self._handle is not None and time.monotonic() - self._shown > PAUSE:
            self._show()

    def end(self) -> None:
        if self._handle is not None:
            self._show()
            self._handle = None

    def _show(self) -> None:
        from IPython.display import HTML  # pyright: ignore[reportMissingImports]

        self._shown = time.monotonic()
        self._handle.update(HTML(bar(*self._last)))


def bar(step: int, n_steps: int, text: str) -> str:
    """A bar with its numbers beside it; `text` may hold anything."""
    share = f'<progress value="{step}" max="{max(n_steps, 1)}" style="width:20em;vertical-align:middle"></progress>'
    return f"<div>{share} {step:,}/{n_steps:,} &nbsp;{html.escape(text)}</div>"
