"""Whether a process holds the lock of a run folder, asked so that nobody is disturbed and nothing is written."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

LOCK = ".lock"


def is_held(folder: Path) -> bool | None:
    """Whether a process holds the lock of a run folder; None where that cannot be told."""
    try:
        handle = os.open(folder / LOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return True if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else None
    finally:
        os.close(handle)  # which drops it
    return False
