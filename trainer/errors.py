"""What is wrong with the user's input: an `error:` line and a `hint:` line for each problem.

Raised once, with every problem found; the command line prints them and exits with 2.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from dataclasses import dataclass
from typing import Any

from ..instrument.messages import catalogue, say
from ..kernels.cpu_level import VARIABLE, LevelError

# What the system says of a path that can be no file's, and how much of it is shown.
_NO_PATH, _SHOWN = (errno.ENAMETOOLONG, errno.ELOOP), 100
# What it says where it lets nobody read or write.
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)
# What it says of a stream or a file that takes no more.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


@dataclass(frozen=True)
class Problem:
    """One thing to put right. `hint` may be empty."""

    error: str
    hint: str = ""

    def __str__(self) -> str:
        return say("error.line", text=self.error) + ("\n" + say("hint.line", text=self.hint) if self.hint else "")


class UserError(Exception):
    """The user's input is wrong; nothing was written."""

    def __init__(self, *problems: Problem):
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


class Stopped(Exception):
    """The run cannot go on, through no fault of its configuration; says what is kept."""


def in_words(error: Exception) -> str | None:
    """What is wrong with the user's input, where that is why the error was raised; else None."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, LevelError):  # when the kernels are imported
        return str(problem("cli.cpu_level", variable=VARIABLE, asked=error.asked, has=", ".join(error.has)))
    if is_output_lost(error):
        return str(problem("cli.output_lost", what=os.strerror(getattr(error, "errno", 0))))
    if isinstance(error, OSError) and error.errno in _NO_PATH:
        return str(problem("cli.no_path", path=str(error.filename)[:_SHOWN], what=error.strerror))
    if isinstance(error, OSError) and error.filename is not None and error.errno in (*_CLOSED, *_NO_ROOM):
        sentence = "cli.closed" if error.errno in _CLOSED else "cli.no_room"
        return str(problem(sentence, path=error.filename, what=error.strerror))
    return None


def is_disk_full(error: BaseException) -> bool:
    """Whether a disk took no more, or could not be read: no fault of the input."""
    return isinstance(error, OSError) and error.errno in _NO_ROOM


def is_output_lost(error: BaseException) -> bool:
    """Whether what was printed had no room: a full disk behind `lora-train ... > file`."""
    return isinstance(error, OSError) and error.errno in _NO_ROOM and error.filename is None


def tell(sentence: object) -> None:
    """Says it on standard error; where that has no room either, nowhere."""
    with contextlib.suppress(OSError):
        print(sentence, file=sys.stderr, flush=True)


def open_streams() -> None:
    """Gives standard streams that were closed (`lora-train ... >&-`) to nothing: a file would take their numbers."""
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(handle)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def drop_output() -> None:
    """Gives up what the standard streams still hold and cannot write: Python would complain of it once more."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def first_line(error: BaseException, typed: bool = False) -> str:
    """The first line of what an error says, its type where it says nothing; `typed`: with the type in any case."""
    name, text = type(error).__name__, str(error).strip()
    return (f"{name}: {text}".strip() if typed else text or name).split("\n")[0]


def reason(error: OSError) -> str:
    """What the system says, and of which file where it names one."""
    what = error.strerror or first_line(error)
    return f"{what} ({error.filename})" if error.filename else what


def kind_of_value(value: Any) -> str:
    """What a value of JSON or YAML is, in words: an object, a list, text."""
    words = {
        dict: "value.object", list: "value.list", str: "value.text", bool: "value.flag", int: "value.whole",
        float: "value.number", type(None): "value.null",
    }  # fmt: skip
    return say(words[type(value)]) if type(value) in words else type(value).__name__


def problem(key: str, /, **values: Any) -> Problem:
    """The problem whose sentences are `key` and, where the catalogue has it, `key.hint`."""
    hint = f"{key}.hint"
    return Problem(say(key, **values), say(hint, **values) if hint in catalogue("en") else "")
