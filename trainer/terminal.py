"""Standard output of a run, which does not end because nobody reads it any more."""

from __future__ import annotations

import sys
from typing import Any

from .errors import is_output_lost


class Terminal:
    """sys.stdout of the moment it is made; what a full disk, a closed terminal or a pipe without a reader refuses is
    lost.
    """

    def __init__(self) -> None:
        self._stream: Any = sys.stdout

    def write(self, text: str) -> int:
        """Writes the text, or loses it."""
        try:
            return self._stream.write(text)
        except OSError as error:
            return _lost(error, len(text))

    def flush(self) -> None:
        """Writes what was held back, or loses it."""
        try:
            self._stream.flush()
        except OSError as error:
            _lost(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _lost(error: OSError, n: int = 0) -> int:
    if not (is_output_lost(error) or isinstance(error, BrokenPipeError)):
        raise error
    return n
