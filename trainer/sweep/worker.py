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

from ...instrument.judge.metrics import LOWER
from ...instrument.read.files import write_text
from ...instrument.read.store import METRICS
from ..signals import NUMBERS, heard, is_impatient, once
from .folder import CONFIG, OUTPUT, SETTINGS, Attempt, attempts, inherit
from .outcome import history_of, hopeless, outcome_of, reached
from .plan import configuration
from .rounds import Planned, Planner
from .study_file import StudyFile

POLL = 0.5
"""Seconds between two looks, and two beats."""
EARLY, TAKEN = "early", "taken"
BY_SIGNAL = (*(sign for number in NUMBERS for sign in (128 + number, -number)), -signal.SIGKILL)
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def environment(study: StudyFile) -> dict[str, str]:
    """Of the processes of a study: as many threads in all of them, so that they compute the same bits."""
    return {**os.environ, **dict.fromkeys(THREADS, str(study.threads or len(os.sched_getaffinity(0))))}


class Interrupted(Exception):
    """The worker was asked to stop; its trial is given back."""


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
        planner: knows the trials.
        told: hears of every trial that has ended, whoever ran it, once.
        waits: hears once of trials that others have, when nothing else is left.
        command: of a trial's process, before its configuration.
    """

    study: StudyFile
    planner: Planner
    told: Callable[[Attempt, dict[str, Any]], None]
    waits: Callable[[list[Attempt]], None]
    command: tuple[str, ...] = (sys.executable, "-m", "lora_train.trainer.sweep.trial")
    _stop: int = 0
    _ended: dict[int, dict[str, Any]] = field(default_factory=dict)
    _waiting: bool = False

    def work(self) -> None:
        """Until every trial has ended.

        Raises:
            Interrupted: by a signal.
        """
        watch = Watch(self.study.lost_after_seconds)
        with self._listening():
            while True:
                found = attempts(self.study.folder)
                for trial, attempt in sorted(found.items()):
                    if trial not in self._ended and (outcome := attempt.outcome()) is not None:
                        self._ended[trial] = outcome
                        self.told(attempt, outcome)
                planned = self.planner.known(self._ended)
                if all(trial in self._ended for trial in range(len(planned))):
                    return
                if self._stop:
                    raise Interrupted(self._stop)
                if (attempt := self._take(found, len(planned), watch)) is not None:
                    self._run(attempt, planned[attempt.trial])
                else:
                    time.sleep(POLL)

    def _take(self, found: dict[int, Attempt], n: int, watch: Watch) -> Attempt | None:
        """The next trial, claimed; None where there is none to be had now."""
        running = [attempt for trial, attempt in found.items() if trial not in self._ended]
        lost = watch.look(running, POLL)
        for attempt in running:
            if (attempt.released or attempt in lost) and attempt.following.take():
                return attempt.following
        for trial in range(n):
            if trial not in found and (attempt := Attempt(self.study.folder, trial)).take():
                return attempt
        if running and not self._waiting:
            self._waiting = True
            self.waits(running)
        return None

    def _run(self, attempt: Attempt, planned: Planned) -> None:
        """Runs a trial in a process of its own, and says how it ended; gives it back where this worker is to stop.

        Raises:
            Interrupted: it is.
        """
        attempt.beat(0)
        self._waiting = False
        if self._was_over(attempt):
            return
        settings = self._settings(attempt, planned)
        write_text(attempt.claim / SETTINGS, json.dumps(settings, ensure_ascii=False) + "\n")
        attempt.run.parent.mkdir(exist_ok=True)
        inherit(attempt)
        sections = configuration(self.study, settings, planned.steps)
        sections["training"]["output_dir"] = str(attempt.run)
        write_text(attempt.claim / CONFIG, yaml.safe_dump(sections, sort_keys=False, allow_unicode=True))
        started = time.monotonic()
        with (attempt.claim / OUTPUT).open("wb") as output:
            child = subprocess.Popen(
                [*self.command, str(attempt.claim / CONFIG)], stdin=subprocess.PIPE, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True, env=environment(self.study),
            )  # fmt: skip
            try:
                code, ended = self._attend(attempt, child, planned)
            finally:
                if child.poll() is None:
                    child.kill()
                    child.wait()
        if ended == TAKEN:
            return
        if self._stop and code in BY_SIGNAL:
            attempt.release()
            raise Interrupted(self._stop)
        outcome = outcome_of(attempt, 0 if ended == EARLY else code, self.study, time.monotonic() - started)
        outcome |= {"settings": settings, "round": planned.round}
        attempt.end(outcome | {"ended": ended} if ended == EARLY else outcome)

    def _was_over(self, attempt: Attempt) -> bool:
        """Whether an earlier attempt ended while this one was being taken; then it is this one's end too."""
        for one in attempt.earlier():
            if (outcome := one.outcome()) is not None:
                inherit(attempt, one)
                attempt.end(outcome)
                return True
        return False

    def _settings(self, attempt: Attempt, planned: Planned) -> dict[str, Any]:
        """What the trial varies: as planned, as an earlier attempt had it, or drawn now."""
        if planned.settings is not None:
            return planned.settings
        earlier = next((found for one in attempt.earlier() if (found := one.settings()) is not None), None)
        if earlier is not None:
            return earlier
        from .tune import draw  # Optuna is an extra

        return draw(self.study, attempt, lower=self.study.metric.endswith(LOWER))

    def _attend(self, attempt: Attempt, child: subprocess.Popen, planned: Planned) -> tuple[int, str]:
        """Beats until the process has ended.

        Returns:
            its exit code, and EARLY where it was ended as hopeless, TAKEN where the trial is another's by now.
        """
        count, told, size = 0, 0, 0
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return child.wait(POLL), ""
            count += 1
            attempt.beat(count)
            if attempt.following.claim.exists():
                return 0, TAKEN
            if self._stop and not told:
                told = self._stop
                child.send_signal(told)
            if self.study.early_stop is None or told:
                continue
            grown = _size(attempt.run / METRICS)
            if grown != size and self._is_hopeless(attempt, planned):
                child.kill()
                child.wait()
                return 0, EARLY
            size = grown

    def _is_hopeless(self, attempt: Attempt, planned: Planned) -> bool:
        own = reached(history_of(attempt), self.study.metric)
        others = [one for one in self._ended.values() if one["ended"] == "done" and one.get("round") == planned.round]
        return hopeless(own, others)

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """Signals are remembered, and handed to the trial's process; a second one ends it at once."""

        def hear(number: int, _frame: object) -> None:
            once(number)
            if is_impatient(number, self._stop):
                raise Interrupted(number)
            self._stop = self._stop or number

        old = {number: signal.signal(number, hear) for number in heard()}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
