"""One run at a time in a folder: an advisory lock that the system drops when the process dies."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import UserError, problem

NAME = ".lock"


class Lock:
    """The lock of one run folder. Where the file system knows no locks there is none."""

    def __init__(self) -> None:
        self._lock: FileLock | None = None

    def take(self, folder: Path) -> None:
        """Takes the lock of a folder, which is made if it is not there; once taken, nothing happens.

        Raises:
            UserError: a run is going on there.
        """
        if self._lock is not None:
            return
        lock = FileLock(folder / NAME)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            raise UserError(problem("run.is_running", folder=folder)) from None
        except (OSError, NotImplementedError):
            return  # open_folder says what is wrong with the folder, if anything is
        self._lock = lock

    def release(self) -> None:
        """Lets go."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def refuse_if_running(folders: Iterable[Path]) -> None:
    """Looks before the model is loaded.

    Raises:
        UserError: a run is going on in one of the folders.
    """
    for folder in folders:
        if (folder / NAME).exists():
            lock = Lock()
            lock.take(folder)
            lock.release()
