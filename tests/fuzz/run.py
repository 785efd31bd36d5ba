"""Runs one target over its inputs: damages one file, reads, puts the file back."""

from __future__ import annotations

import contextlib
import faulthandler
import io
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from .damage import damaged
from .targets import TARGETS, Target

# Seconds of computing; the slowest of the sound inputs takes one. What waits without computing ends after more of them:
# beside ten other programs a sound input was seen to take 30.
HANG = 30
WAITS = 5 * HANG
# More than any sound input needs: one that asks for more is a failure, not the end of the machine.
MEMORY = 8 << 30
MOST = 20
# A target's seconds are of computing: beside other programs it may take so many times as long.
PATIENCE = 5
FINE = (0, 2, 3)
"""Exit codes: done, refused in words, a collapse."""


class Hangs(BaseException):
    """No answer in time."""


@dataclass(frozen=True)
class Fault:
    """One input that failed."""

    target: str
    number: int
    file: str
    what: str

    def __str__(self) -> str:
        return f"--target {self.target} --input {self.number} ({self.file}): {self.what}"


def work(name: str, seed: int, seconds: float, options: Any, count: Any, queue: Any) -> None:
    """A process of one target; failures go into the queue, one of each kind."""
    faulthandler.enable()
    seen: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        target = TARGETS[name](Path(folder))
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
        end, last = time.process_time() + seconds, time.perf_counter() + PATIENCE * seconds
        most = 1 if options.first else MOST
        while time.process_time() < end and time.perf_counter() < last and len(seen) < most:
            fault = read_one(target, Path(folder), seed, count.value, options.keep)
            count.value += 1
            if fault is not None and fault.what not in seen:
                seen.add(fault.what)
                queue.put(fault)


def read_one(
    target: Target, folder: Path, seed: int, number: int, keep: Path | None = None, raises: bool = False
) -> Fault | None:
    """Damages a file, reads, and puts everything back; None where it was read or refused in words."""
    random = Random(f"{seed} {target.name} {number}")
    file = random.choice(target.files)
    sound = file.read_bytes()
    before = set(target.folder.rglob("*"))
    file.write_bytes(damaged(sound, random))
    what = ""
    try:
        with _watched():
            code = target.read(file, random)
        if code not in FINE:
            what = f"exit {code}"
    except Hangs:
        what = f"no answer in {HANG} s"
    except BaseException as error:  # SystemExit and KeyboardInterrupt are no answers either
        if raises:
            traceback.print_exc()
        what = f"{type(error).__name__} at {_where(error)}: {error}".split("\n")[0][:300]
    if what and keep is not None:
        shutil.copytree(target.folder, keep / f"{target.name}-{number}", dirs_exist_ok=True)
    if not raises:
        for new in sorted(set(target.folder.rglob("*")) - before, reverse=True):
            new.rmdir() if new.is_dir() else new.unlink()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(sound)
    return Fault(target.name, number, str(file.relative_to(folder)), what) if what else None


@contextlib.contextmanager
def _watched() -> Iterator[None]:
    """Keeps what is printed, and ends what hangs."""

    def hangs(*_: Any) -> None:
        raise Hangs

    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, hangs)
    signal.setitimer(signal.ITIMER_PROF, HANG)
    signal.setitimer(signal.ITIMER_REAL, WAITS)
    try:
        out, err = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
        with out, err, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _where(error: BaseException) -> str:
    """The innermost line of ours."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "site-packages" not in frame.filename and "fuzz" not in frame.filename]
    frame = (ours or list(frames) or [None])[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}" if frame else sys.argv[0]
