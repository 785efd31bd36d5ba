"""Files that somebody names: read to their end if they have one, written whole or not at all.

regular file       as it is
pipe               until it is closed; one that nobody opens to write is given up after PATIENCE_SECONDS
device, endless    up to a limit, and then named
in a run's folder  regular files only: what lies there may be anybody's
"""

from __future__ import annotations

import errno
import os
import select
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader, TextIOWrapper
from pathlib import Path
from typing import Any, TextIO

from ..messages import say

# Longer than it takes whoever writes to be started.
PATIENCE_SECONDS, PAUSE_SECONDS = 10.0, 0.05
BLOCK = 1 << 20


def read_given(path: Path, most: int) -> bytes:
    """What a file, pipe or device holds that the user names.

    Args:
        most: bytes; a regular file may be larger.

    Raises:
        OSError: it cannot be read, nobody writes into it, or it does not end; `strerror` says which.
    """
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # or it would wait for whoever writes
    with open(handle, "rb", buffering=0) as file:
        kind = os.fstat(handle).st_mode
        if stat.S_ISREG(kind):
            return file.read()
        first = _awaited(handle, path) if stat.S_ISFIFO(kind) else b""
        os.set_blocking(handle, True)
        return first + read_stream(file, most, path)


def read_own(path: Path, errors: str = "strict") -> str:
    """The text of a file in a folder that may be anybody's.

    Args:
        errors: what becomes of bytes that are not UTF-8, as of `open`.

    Raises:
        OSError: it cannot be read, or is no regular file, which might never end.
        UnicodeDecodeError: it is not UTF-8.
    """
    with TextIOWrapper(open_own(path), encoding="utf-8", errors=errors) as file:
        return file.read()


def open_own(path: Path) -> BufferedReader:
    """The bytes of such a file.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if stat.S_ISREG(os.fstat(handle).st_mode):
        return open(handle, "rb")
    os.close(handle)
    raise OSError(errno.EINVAL, say("file.no_file"), str(path))


def read_stream(file: Any, most: int, name: str | Path) -> bytes:
    """What comes until the end.

    Raises:
        OSError: more than `most` bytes came.
    """
    blocks, size = [], 0
    while block := file.read(BLOCK):
        blocks.append(block)
        size += len(block)
        if size > most:
            raise OSError(errno.EFBIG, say("file.endless", mib=most >> 20), str(name))
    return b"".join(blocks)


def _awaited(pipe: int, path: Path) -> bytes:
    """What a pipe holds when somebody has opened it to write.

    Raises:
        TimeoutError: nobody does.
    """
    gone, until = select.poll(), time.monotonic() + PATIENCE_SECONDS
    gone.register(pipe, 0)  # tells only that all who wrote have closed it
    own = os.path.realpath(path).startswith("/proc/")  # <(...) and /dev/stdin are never opened again
    while True:
        try:
            first = os.read(pipe, BLOCK)
        except BlockingIOError:  # somebody is there
            return b""
        if first or own or gone.poll(0):
            return first
        if time.monotonic() > until:
            raise TimeoutError(errno.ETIMEDOUT, say("file.nobody_writes", seconds=PATIENCE_SECONDS), str(path))
        time.sleep(PAUSE_SECONDS)


@contextmanager
def written_whole(path: Path, synced: bool = True) -> Iterator[TextIO]:
    """A file that takes the place of `path` when it is written: another name, sync, rename.

    Not synced it is whole for who reads it, and may be lost with the machine.

    A link is replaced and not followed: in somebody's run folder it may point anywhere. A pipe or a device, as
    /dev/stdout is, is written to.

    Raises:
        OSError: it cannot be written; what was there is there.
    """
    if _is_system(path) or (path.exists() and not path.is_symlink() and not path.is_file()):
        with path.open("w", encoding="utf-8") as file:
            yield file
        return
    partial = path.with_name(f"{path.name}.tmp")
    partial.unlink(missing_ok=True)  # of a process that was killed, or a link
    try:
        with partial.open("x", encoding="utf-8") as file:
            yield file
            file.flush()
            if synced:
                os.fsync(file.fileno())
        partial.replace(path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # a full disk names none: it could be the terminal
            error.filename = str(path)
        raise


def _is_system(path: Path) -> bool:
    """Whether a path lies where the system keeps its own: /dev/stdout is a link there, to a file as well."""
    folder = Path(os.path.realpath(path.parent))
    return path.exists() and (folder == Path("/dev") or folder.is_relative_to("/proc"))


def write_text(path: Path, text: str) -> None:
    """Writes a file as `written_whole` does."""
    with written_whole(path) as file:
        file.write(text)
