"""Makes cards in a process of its own, one run at a time: judging takes idle time, and the page stays quick.

The parent writes a line {id, path, kind, judged} and reads a line {id, card}. The child ends when its input does, so
it never outlives its parent. A run that ends the child, or takes longer than PATIENCE, is said to be unreadable.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .card import card_of, failed
from .find import Found

PATIENCE, IDLE = 300.0, 0.25
NICE = 10
# sys.path[0] of -c is the folder one stands in, which may hold a json.py of somebody's
PROGRAM = (
    "import sys; sys.path[:] = sys.argv[1].split('\\n'); from lora_train.instrument.board.work import serve; serve()"
)


@dataclass(frozen=True)
class Task:
    """A card that is wanted."""

    one: Found
    judged: bool


class Worker:
    """Asks for tasks and hands cards out, from a thread of its own.

    Args:
        following: gives the next task; None where there is none just now.
        done: called with each task and its card, in that thread.
    """

    def __init__(self, following: Callable[[], Task | None], done: Callable[[Task, dict[str, Any]], None]):
        self._following, self._done = following, done
        self._child: subprocess.Popen[bytes] | None = None
        self._answers: queue.Queue[bytes] = queue.Queue()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="cards", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the child and the thread."""
        self._closed.set()
        self._end()
        self._thread.join(timeout=5)

    def _loop(self) -> None:
        while not self._closed.is_set():
            task = self._following()
            if task is None:
                self._closed.wait(IDLE)
                continue
            card = self._ask(task)
            if not self._closed.is_set():
                self._done(task, card or failed("board.unreadable", what="–"))

    def _ask(self, task: Task) -> dict[str, Any] | None:
        """The card; None where the child ended or was too slow, and is ended."""
        child = self._child if self._child is not None and self._child.poll() is None else self._start()
        if child is None or child.stdin is None:
            return None
        asked = {"id": task.one.id, "path": str(task.one.path), "kind": task.one.kind, "judged": task.judged}
        try:
            child.stdin.write(json.dumps(asked).encode() + b"\n")
            child.stdin.flush()
            answer = json.loads(self._answers.get(timeout=PATIENCE))
            return answer["card"] if answer["id"] == task.one.id else None
        except (OSError, ValueError, LookupError, queue.Empty):
            self._end()
            return None

    def _start(self) -> subprocess.Popen[bytes] | None:
        if self._closed.is_set():
            return None
        try:
            child = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, "\n".join(sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the parent
            )
        except OSError:
            return None
        self._child, self._answers = child, queue.Queue()
        if self._closed.is_set():  # meanwhile
            self._end()
            return None
        threading.Thread(target=_hand_on, args=(child, self._answers), daemon=True).start()
        return child

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait()


def _hand_on(child: subprocess.Popen[bytes], answers: queue.Queue[bytes]) -> None:
    assert child.stdout is not None
    for line in child.stdout:
        answers.put(line)
    answers.put(b"")  # it has ended: no answer is a card


def serve() -> None:
    """The child: cards for paths, until its input ends."""
    os.nice(NICE)
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    for line in sys.stdin.buffer:
        asked = json.loads(line)
        card = card_of(Path(asked["path"]), asked["kind"], asked["judged"])
        out.write(json.dumps({"id": asked["id"], "card": card}).encode() + b"\n")
        out.flush()
