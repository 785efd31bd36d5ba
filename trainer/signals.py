"""SIGINT, SIGTERM and SIGHUP of the command: a sentence and the exit code 128 + number, at every moment.

start-up                 at once: libraries that are being imported do not survive an exception in their midst
the folder is open       KeyboardInterrupt: what is half written goes (loop/session.py, Stop)
training                 after the step in flight; a second one as before
a verb                   KeyboardInterrupt
the last word is said    nothing more: the interpreter is closing
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from .errors import tell

HANGUP = getattr(signal, "SIGHUP", None)  # Windows has none
NUMBERS = (signal.SIGINT, signal.SIGTERM, *([HANGUP] if HANGUP else []))


def heard() -> list[int]:
    """The signals that end the command. `nohup` has it go on when the terminal is closed."""
    return [number for number in NUMBERS if number != HANGUP or signal.getsignal(number) != signal.SIG_IGN]


def once(number: int) -> None:
    """In a handler: system and shell both send SIGHUP when a terminal is closed, and the second is no impatience."""
    if number == HANGUP:
        signal.signal(number, signal.SIG_IGN)


def is_impatient(number: int, before: int) -> bool:
    """Whether a signal that comes after another one asks to end at once: not the terminal that is closed after Ctrl-C,
    nor the SIGHUP that follows a SIGTERM when a session is ended.
    """
    return bool(before) and number != HANGUP


def interruptible(run: Callable[[], int], sentence: str) -> int:
    """Runs what takes the signals over once it has something to save; until then they end the process.

    Args:
        run: gives the exit code.
        sentence: said then.
    """

    def leave(number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(OSError):
            os.write(2, f"{sentence}\n".encode())
        os._exit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        return run()
    old = {number: signal.signal(number, leave) for number in heard()}
    try:
        code = run()
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
    return ended_by(code - 128) if code - 128 in NUMBERS else code


@contextlib.contextmanager
def ended_in_order() -> Iterator[None]:
    """The others raise KeyboardInterrupt, as SIGINT does: a verb's half-written files go.

    Raises:
        KeyboardInterrupt: carries the signal's number.
    """

    def end(number: int, _frame: FrameType | None) -> None:
        once(number)
        raise KeyboardInterrupt(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = {number: signal.signal(number, end) for number in heard() if number != signal.SIGINT}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def last_word(sentence: str, error: KeyboardInterrupt) -> int:
    """Says it; the exit code."""
    tell(sentence)
    return ended_by(error.args[0] if error.args else signal.SIGINT)


def ended_by(number: int) -> int:
    """The exit code of a signal. Another one while the interpreter closes changes nothing any more."""
    if threading.current_thread() is threading.main_thread():
        for one in NUMBERS:
            signal.signal(one, signal.SIG_IGN)
    return 128 + number
