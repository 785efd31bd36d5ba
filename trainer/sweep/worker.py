"""A worker: takes a free trial, runs it in a process of its own, says how it ended, takes the next.

free       nobody has taken it; or given back; or lost: its beat has not changed for lost_after_seconds, by this
           worker's own clock, of which a gap between two looks counts at most twice the usual one: whoever was
           stopped itself does not take the others for lost when it wakes
the trial  its process ends with the worker; a worker that finds its trial taken by another ends the process
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ...instrument.read.store import write_text
from .folder import SETTINGS, Attempt, attempts, inherit
from .outcome import outcome_of
from .plan import configuration
from .study_file import StudyFile

POLL = 0.5
BEATS = 12
"""Beats within the time after which a worker is lost."""
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
CONFIG, OUTPUT = "trial.yaml", "output.txt"


class Interrupted(Exception):
    """The worker was asked to stop; its trial is given back."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number


@dataclass
class Watch:
    """When the beat of each attempt last changed, by the clock of this process.

    Attributes:
        lost_after: seconds.
    """

    lost_after: float
    clock: Callable[[], float] = time.monotonic
    _seen: dict[str, tuple[str, float]] = field(default_factory=dict)
    _last: float | None = None

    def look(self, running: list[Attempt], usual: float) -> list[Attempt]:
        """Those of the running attempts that are lost.

        Args:
            usual: seconds between two looks.
        """
        now = self.clock()
        passed = 0.0 if self._last is None else min(now - self._last, 2 * usual)
        self._last = now
        seen: dict[str, tuple[str, float]] = {}
        for attempt in running:
            pulse = attempt.pulse()
            before, silent = self._seen.get(attempt.name, (None, 0.0))
            seen[attempt.name] = (pulse, silent + passed if pulse == before else 0.0)
        self._seen = seen
        return [attempt for attempt in running if seen[attempt.name][1] >= self.lost_after]


@dataclass
class Worker:
    """One process that works on a study.

    Attributes:
        study: what is asked.
        plan: gives the settings and steps of every trial that is known by now.
        told: hears of every trial that has ended, whoever ran it, once.
    """

    study: StudyFile
    plan: Callable[[dict[int, Attempt]], list[tuple[dict[str, Any] | None, int]]]
    told: Callable[[Attempt, dict[str, Any]], None]
    _stop: int = 0

    def work(self) -> None:
        """Until every trial has ended.

        Raises:
            Interrupted: by a signal.
        """
        watch, ended = Watch(self.study.lost_after_seconds), set()
        with self._listening():
            while True:
                found = attempts(self.study.folder)
                planned = self.plan(found)
                for trial, attempt in sorted(found.items()):
                    if trial not in ended and (outcome := attempt.outcome()) is not None:
                        ended.add(trial)
                        self.told(attempt, outcome)
                if all(trial in ended for trial in range(len(planned))):
                    if len(self.plan(attempts(self.study.folder))) == len(planned):
                        return
                    continue
                if (attempt := self._take(found, planned, watch)) is not None:
                    settings, steps = planned[attempt.trial]
                    self._run(attempt, settings, steps)
                    continue
                if self._stop:
                    raise Interrupted(self._stop)
                time.sleep(POLL)

    def _take(self, found: dict[int, Attempt], planned: list, watch: Watch) -> Attempt | None:
        """The next trial, claimed; None where there is none to be had now."""
        if self._stop:
            raise Interrupted(self._stop)
        for trial in range(len(planned)):
            if trial not in found and (attempt := Attempt(self.study.folder, trial)).take():
                return attempt
        running = [attempt for attempt in found.values() if attempt.outcome() is None]
        lost = watch.look(running, POLL)
        for attempt in running:
            if (attempt.released or attempt in lost) and attempt.following.take():
                return attempt.following
        return None

    def _run(self, attempt: Attempt, settings: dict[str, Any] | None, steps: int) -> None:
        attempt.beat(0)
        settings = settings or {}
        write_text(attempt.claim / SETTINGS, json.dumps(settings, ensure_ascii=False) + "\n")
        attempt.run.parent.mkdir(exist_ok=True)
        inherit(attempt)
        sections = configuration(self.study, settings, steps)
        sections["training"]["output_dir"] = str(attempt.run)
        write_text(attempt.claim / CONFIG, yaml.safe_dump(sections, sort_keys=False, allow_unicode=True))
        started = time.monotonic()
        with (attempt.claim / OUTPUT).open("wb") as output:
            child = subprocess.Popen(
                [sys.executable, "-m", "lora_train.trainer.sweep.trial", str(attempt.claim / CONFIG)],
                stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
                env={**os.environ, **dict.fromkeys(THREADS, str(self.study.threads))},
            )  # fmt: skip
            try:
                code = self._attend(attempt, child)
            finally:
                if child.poll() is None:
                    child.kill()
                    child.wait()
        if code is None:  # another has taken it
            return
        if self._stop and code in (128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGKILL):
            attempt.release()
            raise Interrupted(self._stop)
        attempt.end(outcome_of(attempt, code, self.study, time.monotonic() - started))

    def _attend(self, attempt: Attempt, child: subprocess.Popen) -> int | None:
        """Beats until the process has ended; its exit code, or None where the trial is another's by now."""
        count, told = 0, 0
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return child.wait(POLL)
            count += 1
            attempt.beat(count)
            if attempt.following.claim.exists():
                return None
            if self._stop and not told:
                told = self._stop
                child.send_signal(told)

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """Signals are remembered, and handed to the trial's process; a second one ends it at once."""

        def hear(number: int, _frame: object) -> None:
            if self._stop:
                raise Interrupted(number)
            self._stop = number

        old = {number: signal.signal(number, hear) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
