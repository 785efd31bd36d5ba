"""The rows of a folder, kept up to date by a thread, and what has changed in them since a reader last asked.

Every TICK the runs that go on are asked for the lines they appended and for their lock; every SCAN, or more rarely
where a search takes long, the folder is searched. Cards come from the index at once, else from the worker: first a
quick one without the verdict, the newest run first, then the verdicts.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..read.lock import is_held
from ..read.store import METRICS
from .card import card_of, peek
from .find import Found, find_runs, readable
from .index import Index
from .marks import Marks
from .status import identity, listed, status_of
from .tail import Tail, points
from .work import Task, Worker

TICK, SCAN, SAVE = 1.0, 2.0, 10.0
SHARE = 20
"""A search, or a judgement of one run, is made again after so many times what it took."""
AGAIN = 15.0
"""Seconds after which the verdict of a run that goes on is made again."""
MOST_POINTS = 500
SHOWN = (
    "step",
    "planned",
    "loss",
    "spark",
    "best",
    "seconds",
    "started",
    "verdict",
    "error",
    "trials",
    "ended",
    "dead",
)


@dataclass
class Row:
    """A run or study.

    Attributes:
        one: where it lies.
        card: what is known of it.
        fresh: whether the card holds.
        marks: its tags and its note.
        version: of its last change.
        points: appended since the card: version, step, loss.
    """

    one: Found
    card: dict[str, Any] | None
    fresh: bool
    marks: dict[str, Any]
    status: str = "unfinished"
    version: int = 0
    points: list[tuple[int, list[float | None]]] = field(default_factory=list)
    held: bool | None = None
    seen: tuple[int, str] = (-1, "")
    tail: Tail | None = None
    next_ask: float = 0.0
    asked: float = 0.0

    def shown(self) -> dict[str, Any]:
        """What a page is told."""
        card = self.card or {}
        own = {name: card[name] for name in SHOWN if card.get(name) is not None}
        return {
            "id": self.one.id,
            "name": self.one.name,
            "kind": self.one.kind,
            "study": self.one.study,
            "status": self.status,
            "date": round((card.get("started") or self.one.changed) * 1000),
            "pending": not self.fresh,
            **own,
            **self.marks,
        }


class Board:
    """What is under a folder.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path):
        self.root, self.index, self.version = root, Index(root), 0
        found = find_runs(root)
        # of a folder that is a run itself the notes lie beside it: nothing is written into a run
        self._is_run = any(one.path == root and one.kind == "run" for one in found)
        self.marks = Marks(root.resolve().parent if self._is_run else root)
        self._changed = threading.Condition(threading.RLock())
        self._gone: list[tuple[int, str]] = []
        self._closed = threading.Event()
        self._worker: Worker | None = None
        self._thread: threading.Thread | None = None
        self.rows: dict[str, Row] = {}
        self._take(found)

    def start(self) -> None:
        """Watches from here on."""
        self._worker = Worker(self._next_task, self._done)
        self._thread = threading.Thread(target=self._loop, name="board", daemon=True)
        self._thread.start()

    def fill(self, tell: Callable[[int, int], None]) -> None:
        """Makes the cards that are missing here and now, the newest run first.

        Args:
            tell: is told how many are made, and of how many.
        """
        waiting = sorted((row for row in self.rows.values() if not row.fresh), key=lambda row: -row.one.changed)
        for n, row in enumerate(waiting):
            tell(n, len(waiting))
            self._done(Task(row.one, judged=True), card_of(row.one.path, row.one.kind))

    def close(self) -> None:
        """Ends the threads and keeps the cards."""
        self._closed.set()
        with self._changed:
            self._changed.notify_all()
        if self._worker is not None:
            self._worker.close()
        if self._thread is not None:
            self._thread.join(timeout=5)
        self.index.save(self.rows)

    @property
    def closed(self) -> bool:
        return self._closed.is_set()

    def shown(self) -> tuple[int, list[dict[str, Any]]]:
        """The version, and every row as a page is told."""
        with self._changed:
            return self.version, [row.shown() for row in self.rows.values()]

    def row(self, id: str) -> Row | None:
        """A run or study by its id."""
        with self._changed:
            return self.rows.get(id)

    def mark(self, id: str, tags: Any, note: Any) -> dict[str, Any] | None:
        """Keeps tags and a note; None of a run that is not there.

        Raises:
            MarksError, OSError: they cannot be kept.
        """
        row = self.row(id)
        if row is None:
            return None
        kept = self.marks.write(self._marked(row.one), tags, note)
        with self._changed:
            row.marks = kept
            self._bump(row)
        return kept

    def changes(self, since: int, patience: float) -> tuple[int, dict[str, Any]] | None:
        """What has changed since a version: whole rows, appended points by id, ids that are gone.

        Args:
            patience: seconds to wait for a change; None is returned after them.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.version > since or self.closed, patience)
            if self.version <= since or self.closed:
                return None
            rows = [row.shown() for row in self.rows.values() if row.version > since]
            added = {
                row.one.id: [point for version, point in row.points if version > since]
                for row in self.rows.values()
                if row.version <= since and row.points and row.points[-1][0] > since
            }
            gone = [id for version, id in self._gone if version > since and id not in self.rows]
            return self.version, {"rows": rows, "points": added, "gone": gone}

    def scan(self) -> None:
        """Searches the folder."""
        self._take(find_runs(self.root))

    def _take(self, runs: Iterable[Found]) -> None:
        """Makes the rows those of the runs that were found."""
        found = {one.id: one for one in runs}
        marks = self.marks.read()
        with self._changed:
            for id in self.rows.keys() - found.keys():
                del self.rows[id]
                self.version += 1
                self._gone.append((self.version, id))
            for id, one in found.items():
                kept = marks.get(self._marked(one), {"tags": [], "note": ""})
                row = self.rows.get(id)
                if row is None:
                    self._add(one, kept)
                elif row.one != one or row.marks != kept:
                    moved = row.one.stamp != one.stamp
                    row.one, row.marks, row.fresh = one, kept, row.fresh and not moved
                    if row.status != "running" or not moved:
                        self._bump(row)
            self._judge_states(self.rows.values())

    def _marked(self, one: Found) -> str:
        """What a run is called among the notes: its path below the folder that they lie in."""
        is_below = self._is_run and one.path != self.root
        return f"{readable(self.root.resolve().name)}/{one.name}" if is_below else one.name

    def _add(self, one: Found, marks: dict[str, Any]) -> None:
        card, fresh = self.index.get(one)
        if card is None and one.kind == "run":
            card = peek(one.path)
        row = self.rows[one.id] = Row(one, card, fresh, marks)
        self._bump(row)

    def _bump(self, row: Row) -> None:
        self.version += 1
        row.version = self.version
        self._changed.notify_all()

    def _judge_states(self, rows: Iterable[Row]) -> None:
        """Of runs from their locks and files; then of studies from their trials."""
        now, locks = time.time(), listed()
        for row in list(rows):
            if row.one.kind == "run":
                self._hold(row, locks)
                self._say(row, status_of(row.one.path, row.card, row.held, now - row.one.changed))
        running = {row.one.study for row in self.rows.values() if row.status == "running"}
        for row in self.rows.values():
            if row.one.kind == "study":
                ended = bool((row.card or {}).get("finished"))
                self._say(row, "running" if row.one.id in running else "ended" if ended else "stopped")

    def _hold(self, row: Row, locks: set[tuple[int, int, int]]) -> None:
        """Looks at the lock: at the system's list; itself only where somebody may have taken it or let it go."""
        lock = identity(row.one.path) if row.one.locked else None
        if lock is None:
            row.held = None
            return
        seen = (lock[1], row.one.stamp)
        if lock[0] in locks:
            row.held = True
        elif row.held or seen != row.seen:
            row.held = is_held(row.one.path)
        row.seen = seen

    def _say(self, row: Row, status: str) -> None:
        if status == row.status and row.version:
            if status == "running" and row.tail is None:
                row.tail = Tail(row.one.path / METRICS, None)
            return
        was, row.status = row.status, status
        row.tail = Tail(row.one.path / METRICS, None) if status == "running" else None
        if was == "running":
            row.fresh, row.next_ask = False, 0.0
        self._bump(row)

    def _loop(self) -> None:
        scanned, saved, wait = time.monotonic(), time.monotonic(), SCAN
        while not self._closed.wait(TICK):
            began = time.monotonic()
            if began - scanned >= wait:
                self.scan()
                scanned = time.monotonic()
                wait = max(SCAN, SHARE * (scanned - began))
            with self._changed:
                self._tick()
            if time.monotonic() - saved >= SAVE:
                self.index.save(list(self.rows))
                saved = time.monotonic()

    def _tick(self) -> None:
        running = [row for row in self.rows.values() if row.status == "running" and row.one.kind == "run"]
        for row in running:
            if row.tail is None:
                continue
            lines = row.tail.read()
            if lines is None:  # cut off, or another file
                row.tail, row.points, row.next_ask = Tail(row.tail.path, None), [], 0.0
                row.fresh = False
                self._bump(row)
                continue
            for point in points(lines):
                self._append(row, point)
        self._judge_states(running)

    def _append(self, row: Row, point: list[float | None]) -> None:
        self.version += 1
        row.points.append((self.version, point))
        row.card = {**(row.card or {}), "step": point[0], "loss": point[1]}
        steps, loss = (list(values) for values in row.card.get("spark") or ([], []))
        while steps and (steps[-1] or 0) >= (point[0] or 0):  # it was run again
            steps, loss = steps[:-1], loss[:-1]
        row.card["spark"] = [[*steps, point[0]][-MOST_POINTS:], [*loss, point[1]][-MOST_POINTS:]]
        if len(row.points) > MOST_POINTS:
            row.points = row.points[-MOST_POINTS // 2 :]
            row.version = self.version  # who has not seen them gets the whole row
        self._changed.notify_all()

    def _next_task(self) -> Task | None:
        """A quick card first, the newest run first; then the verdicts."""
        now = time.monotonic()
        with self._changed:
            waiting = [row for row in self.rows.values() if not row.fresh and row.next_ask <= now]
            if not waiting:
                return None
            row = max(waiting, key=lambda row: (not _is_known(row), row.status == "running", row.one.changed))
            row.asked = now
            row.next_ask = now + 3600  # not again before it is done
            return Task(row.one, judged=_is_known(row))

    def _done(self, task: Task, card: dict[str, Any]) -> None:
        with self._changed:
            row = self.rows.get(task.one.id)
            if row is None:
                return
            self.index.put(task.one, card)
            if not card["judged"] and row.card:  # until then the verdict of before
                card["verdict"] = row.card.get("verdict")
            after = [(version, point) for version, point in row.points if (point[0] or 0) > card["step"]]
            row.card, row.points = card, []
            row.fresh = bool(card["judged"]) and task.one.stamp == row.one.stamp
            for _, point in after:
                self._append(row, point)
            now = time.monotonic()
            goes_on = row.status == "running" and bool(card["judged"])
            row.next_ask = now + max(AGAIN, SHARE * (now - row.asked)) if goes_on else now
            self._bump(row)
            self._judge_states([row])


def _is_known(row: Row) -> bool:
    return row.card is not None and "judged" in row.card
