"""Whether a run goes on, from its lock and its files.

running      its lock is held; without a lock (another program trains), it was written within FRESH seconds
ended        it came to its end, planned or early
stopped      by a collapse, or in order: the state of its last step is saved
crashed      its lock is free and it came to no end
unfinished   it has no lock, and who trained it does not say

What the system lists of its locks disturbs nobody (`listed`). What it does not list (another machine of a shared disk,
another container) shows in a shared lock that is dropped at once and writes nothing (read/lock.py); whoever starts a
run in that very instant would be refused, so callers ask only where the run's files have changed.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from ..read.files import open_own
from ..read.lock import LOCK
from ..read.store import file_order, stats_files

STATES = ("running", "ended", "stopped", "crashed", "unfinished")
FRESH = 120.0
END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"
"""What an Arrow stream ends with once it is closed."""
_LISTED = re.compile(r"FLOCK +\S+ +WRITE +\S+ ([0-9a-f]+):([0-9a-f]+):(\d+) ")


def listed() -> set[tuple[int, int, int]]:
    """Device (major, minor) and inode of every file that a process of this machine has locked, as far as is known."""
    try:
        lines = Path("/proc/locks").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return set()
    found = set()
    for line in lines:  # "1: FLOCK  ADVISORY  WRITE 1234 08:01:131072 0 EOF"
        if match := _LISTED.search(line):
            found.add((int(match[1], 16), int(match[2], 16), int(match[3])))
    return found


def identity(folder: Path) -> tuple[tuple[int, int, int], int] | None:
    """What `listed` calls the lock of a run folder, and when it was written; None where it has none."""
    try:
        facts = os.stat(folder / LOCK, follow_symlinks=False)
    except OSError:
        return None
    return (os.major(facts.st_dev), os.minor(facts.st_dev), facts.st_ino), facts.st_mtime_ns


def status_of(folder: Path, card: dict[str, Any] | None, held: bool | None, age: float) -> str:
    """One of STATES.

    Args:
        card: what is known of it; None: nothing yet.
        held: whether its lock is held; None: it has none.
        age: seconds since it was written.
    """
    if held:
        return "running"
    known = card or {}
    if known.get("finished"):
        return "ended"
    if known.get("collapsed"):
        return "stopped"
    if held is None:
        return "running" if age < FRESH else "unfinished"
    return "stopped" if is_saved(folder, known.get("step") or 0) else "crashed"


def is_saved(folder: Path, step: int) -> bool:
    """Whether the state of the last step was saved, and the statistics were closed: it ended in order."""
    if not (folder / f"checkpoint-{step}").is_dir():
        return False
    try:
        files = sorted(stats_files(folder), key=file_order)
        if not files or files[-1].suffix != ".arrows":
            return True
        with open_own(files[-1]) as file:
            file.seek(-len(END_OF_STREAM), os.SEEK_END)
            return file.read() == END_OF_STREAM
    except OSError:
        return False
