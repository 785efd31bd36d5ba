"""Cards come from a process of its own, which may die and never outlives its parent."""

from __future__ import annotations

import os
import signal

import pytest
from lora_train.instrument.board.card import card_of
from lora_train.instrument.board.find import find_runs
from lora_train.instrument.board.work import Task, Worker

from .build import copy, until

pytestmark = pytest.mark.slow


@pytest.fixture
def worked():
    tasks: list[Task] = []
    done: list[tuple[Task, dict]] = []
    worker = Worker(lambda: tasks.pop(0) if tasks else None, lambda task, card: done.append((task, card)))
    yield worker, tasks, done
    worker.close()


def test_the_same_card_as_here(tmp_path, worked, monkeypatch):
    _, tasks, done = worked
    (tmp_path / "here").mkdir()
    for name in ("json", "os", "lora_train"):  # of the folder that one stands in nothing is imported
        (tmp_path / "here" / f"{name}.py").write_text("raise SystemExit('imported')")
    monkeypatch.chdir(tmp_path / "here")
    copy(tmp_path / "runs" / "a")
    (one,) = find_runs(tmp_path / "runs")
    tasks += [Task(one, judged=False), Task(one, judged=True)]
    until(lambda: len(done) == 2)
    assert [card for _, card in done] == [card_of(one.path, "run", judged=judged) for judged in (False, True)]


def test_a_run_that_ends_the_process_is_said_to_be_unreadable_and_the_next_is_read(tmp_path, worked):
    worker, tasks, done = worked
    copy(tmp_path / "a")
    (one,) = find_runs(tmp_path)
    tasks.append(Task(one, judged=True))
    until(lambda: len(done) == 1)
    child = worker._child
    os.kill(child.pid, signal.SIGSTOP)  # so that it is asked, and does not answer
    tasks.append(Task(one, judged=True))
    until(lambda: not tasks)
    os.kill(child.pid, signal.SIGKILL)
    until(lambda: len(done) == 2)
    assert done[1][1]["error"] is not None
    tasks.append(Task(one, judged=True))
    until(lambda: len(done) == 3)
    assert done[2][1]["error"] is None


def test_it_ends_with_whoever_asks(tmp_path, worked):
    worker, tasks, done = worked
    copy(tmp_path / "a")
    tasks.append(Task(find_runs(tmp_path)[0], judged=False))
    until(lambda: done)
    child = worker._child
    assert os.getsid(child.pid) != os.getsid(0)  # Ctrl-C in the terminal is not for it
    child.stdin.close()  # as when the parent is gone
    assert child.wait(timeout=60) == 0
