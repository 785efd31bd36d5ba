"""Workers that share a folder: killed, stopped, asked to end; no trial lost, none doubled, none written to twice."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lora_train.trainer.sweep.folder import Attempt, attempts
from lora_train.trainer.sweep.worker import Watch

from ...conftest import COMMAND_ENVIRONMENT
from .build import RATES, begun

WORK = Path(__file__).with_name("work.py")
PATIENCE = 240.0
"""Seconds until a test gives up on a process of a busy machine."""


def worker(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, str(WORK), str(folder)]
    return subprocess.Popen(command, env=COMMAND_ENVIRONMENT, stdout=subprocess.PIPE, text=True)


def until(true, what: str) -> None:
    """Waits for something to become true."""
    for _ in range(int(PATIENCE / 0.05)):
        if true():
            return
        time.sleep(0.05)
    pytest.fail(f"waited in vain for {what}")


def results(folder: Path) -> dict[int, tuple]:
    """Of each trial what its last attempt says it reached."""
    found = {trial: attempt.outcome() or {} for trial, attempt in attempts(folder).items()}
    return {trial: (one["ended"], one["value"], one["step"], one["curve"]) for trial, one in sorted(found.items())}


def tree(*folders: Path) -> dict[str, str]:
    """Every file below, with its digest."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_one_worker_and_four_give_the_same(tmp_path):
    for name, n in (("one", 1), ("four", 4)):
        (tmp_path / name).mkdir()
        study, _ = begun(tmp_path / name)
        running = [worker(study.folder) for _ in range(n)]
        told = [process.communicate(timeout=PATIENCE)[0].splitlines() for process in running]
        assert [process.returncode for process in running] == [0] * n
        for lines in told:  # each hears of every trial once
            assert sorted(line for line in lines if line.endswith("done")) == [f"00{i} done" for i in range(4)]
        assert sorted(path.name for path in (study.folder / "claims").iterdir()) == ["000", "001", "002", "003"]
    one, four = (results(tmp_path / name / "study") for name in ("one", "four"))
    assert one == four
    assert [value for _, value, *_ in one.values()] == [1 + rate + 1 / 40 for rate in RATES]


@pytest.mark.parametrize("seed", [1, 2])
def test_workers_that_are_killed_lose_and_double_no_trial(tmp_path, seed):
    draw = random.Random(seed)
    study, _ = begun(tmp_path, lost_after_seconds=1)
    running = [worker(study.folder) for _ in range(2)]
    try:
        for _ in range(3):  # when all have begun one is killed at a random moment, and another comes
            until(lambda: attempts(study.folder), "the first claim")
            time.sleep(draw.uniform(0.2, 2.0))
            victim = running.pop(0)
            os.kill(victim.pid, signal.SIGKILL)
            victim.wait()
            running.append(worker(study.folder))
        for process in running:
            process.communicate(timeout=PATIENCE)
            assert process.returncode == 0
    finally:
        for process in running:
            process.kill()
    assert [value for _, value, *_ in results(study.folder).values()] == [1 + rate + 1 / 40 for rate in RATES]
    assert {ended for ended, *_ in results(study.folder).values()} == {"done"}


def test_one_that_was_only_stopped_writes_nothing_where_another_goes_on(tmp_path):
    study, _ = begun(tmp_path, nuisance={"training.learning_rate": [0.1, 0.2]}, lost_after_seconds=1)
    first = Attempt(study.folder, 0)
    sleeper = worker(study.folder)
    try:
        until(lambda: (first.run / "metrics.jsonl").exists(), "the first trial")
        os.kill(sleeper.pid, signal.SIGSTOP)
        other = worker(study.folder)
        out, _ = other.communicate(timeout=PATIENCE)
        assert other.returncode == 0
        assert "000.2 done" in out
        taken = tree(first.following.run, first.following.claim)
        os.kill(sleeper.pid, signal.SIGCONT)
        assert sleeper.wait(timeout=PATIENCE) == 0
    finally:
        sleeper.kill()
    assert tree(first.following.run, first.following.claim) == taken
    assert attempts(study.folder)[0].number == 2


def test_a_worker_that_is_asked_to_stop_gives_its_trial_back(tmp_path):
    study, _ = begun(tmp_path, nuisance={"training.learning_rate": [0.1, 0.2]})
    running = worker(study.folder)
    until(lambda: (Attempt(study.folder, 0).run / "metrics.jsonl").exists(), "the first trial")
    running.send_signal(signal.SIGTERM)
    assert running.wait(timeout=PATIENCE) == 128 + signal.SIGTERM
    assert Attempt(study.folder, 0).released
    again = worker(study.folder)  # at once, though a minute is what a lost one would take
    assert again.wait(timeout=PATIENCE) == 0
    assert sorted(path.name for path in (study.folder / "claims").iterdir()) == ["000", "000.2", "001"]


def test_a_trial_that_is_refused_has_its_cause(tmp_path):
    study, _ = begun(tmp_path, nuisance={"training.learning_rate": [0.1, 2.0]})
    assert worker(study.folder).wait(timeout=PATIENCE) == 0
    outcome = Attempt(study.folder, 1).outcome()
    assert outcome is not None
    assert (outcome["ended"], outcome["value"]) == ("refused", None)
    assert outcome["why"] == dict.fromkeys(("en", "ko"), "data.train is not there")


def test_the_median_rule_ends_what_is_worse_than_most_were_by_then(tmp_path):
    study, _ = begun(tmp_path, nuisance={"training.learning_rate": [0.1, 0.2, 0.3, 0.9]}, early_stop="median")
    assert worker(study.folder).wait(timeout=PATIENCE) == 0
    outcomes = [one.outcome() or {} for _, one in sorted(attempts(study.folder).items())]
    assert [one["ended"] for one in outcomes] == ["done", "done", "done", "early"]


class Beats:
    """An attempt whose beat is set by the test."""

    def __init__(self, name: str):
        self.name, self.now = name, "0"

    def pulse(self) -> str:
        return self.now


def test_who_is_lost_is_judged_by_silence_alone():
    time_now = [0.0]
    watch, silent, alive = Watch(10.0, lambda: time_now[0]), Beats("a"), Beats("b")

    def look(after: float) -> list[str]:
        time_now[0] += after
        alive.now = str(time_now[0])
        return [one.name for one in watch.look([silent, alive], 1.0)]  # pyright: ignore[reportArgumentType]

    assert [look(1.0) for _ in range(10)] == [[]] * 10  # the first look hears for the first time
    assert look(1.0) == ["a"]


def test_who_slept_itself_takes_nobody_for_lost():
    time_now, silent = [0.0], Beats("a")
    watch = Watch(10.0, lambda: time_now[0])
    for after in (0.0, 1.0, 3600.0, 1.0):  # stopped for an hour between two looks
        time_now[0] += after
        assert watch.look([silent], 1.0) == []  # pyright: ignore[reportArgumentType]


def test_beats_are_numbers_in_a_file(tmp_path):
    attempt = Attempt(tmp_path, 7, 3)
    assert attempt.take()
    assert not attempt.take()
    assert attempt.pulse() == ""
    attempt.beat(5)
    assert (attempt.name, attempt.pulse()) == ("007.3", "5")
    assert json.loads((attempt.claim / "beat").read_text()) == 5
