"""Whether the machine was ours: its load before, and what other processes took of it meanwhile."""

from __future__ import annotations

import os
import time
from pathlib import Path

BUSY_LOAD = 0.7  # processes running or waiting before we start
BUSY_CORES = 0.2  # taken by others on average while we run


class Load:
    """Looks at the machine when made, and again when asked."""

    def __init__(self) -> None:
        self.before = os.getloadavg()[0]
        self._started, self._own, self._all = time.monotonic(), own_seconds(), machine_seconds()

    @property
    def busy(self) -> bool:
        """Whether others were at work before the measurement."""
        return self.before > BUSY_LOAD

    def before_words(self) -> str:
        """One clause about the time before."""
        return f"load {self.before:.1f} before" + (" (busy: these times mean little)" if self.busy else "")

    def after_words(self) -> str:
        """One line about the time since; call it when the processes that measured have ended."""
        wall, own, everyone = time.monotonic() - self._started, own_seconds(), machine_seconds()
        line = f"load {os.getloadavg()[0]:.1f} after, its own included"
        if everyone is None or self._all is None:
            return line
        others = max(0.0, (everyone - self._all - own + self._own) / wall)
        return f"{line}; others took {others:.2f} cores meanwhile" + (" (busy)" if others > BUSY_CORES else "")


def own_seconds() -> float:
    """CPU seconds of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def machine_seconds() -> float | None:
    """CPU seconds of all processes since the machine started: user, nice, system, irq, softirq and steal."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    values = [int(word) for word in stat.read_text(encoding="ascii").splitlines()[0].split()[1:9]]
    return (sum(values) - values[3] - values[4]) / os.sysconf("SC_CLK_TCK")
