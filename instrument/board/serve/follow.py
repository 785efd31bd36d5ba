"""The page of a run that goes on: sent whole once, then the lines that its metrics.jsonl gets.

    /                  the page, with where its metrics.jsonl ended
    /events?from=N     rows: lines after byte N (the id of an event is where they end); again: the file is another one;
                       begun: there is something to show now; ended: the run has ended, and so does the stream
    /data              what the page is made of, made again: verdict, tiles, problems; &layers=1: the layers too

A page shows rows by itself (show/page's live.js) and asks for its data again now and then: judging is what takes long.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...judge.explain import read_history
from ...messages import LANGUAGES, catalogue, say
from ...read.history import History, SourceError
from ...read.lock import is_held
from ...read.store import METRICS, SITES
from ...show.page import document
from ...show.page.people import run_name
from ...show.report import SCRIPTS
from ...show.report.data import report_data
from ...show.report.overview import state
from ..page import LIVE, waiting_page
from ..status import FRESH
from ..tail import Tail
from .server import JSON_TYPE, Answer, Stream, plain

POLL, HEARTBEAT = 0.5, 10.0
FAMILY = "board.live."
# What a run folder may hold before its first step.
BEFORE_THE_FIRST_STEP = ("config.yaml", "env.json", ".lock")


def begun(path: Path) -> bool:
    """Whether there is something to read, be it that this is no run at all."""
    if any((path / name).is_file() for name in (METRICS, SITES)):
        return True
    return path.is_dir() and any(child.name not in BEFORE_THE_FIRST_STEP for child in path.iterdir())


def goes_on(path: Path, history: History | None = None) -> bool:
    """Whether a run's lock is held; where it has none, whether it was written just now and has not ended."""
    held = is_held(path)
    if held is not None:
        return held
    if history is not None and state(history, False) in ("ended", "stopped"):
        return False
    try:
        return time.time() - (path / METRICS).stat().st_mtime < FRESH
    except OSError:
        return False


def run_page(path: Path, back: str | None = None) -> Answer:
    """The report of a run as it is now; it goes on by itself where the run does."""
    try:
        data = run_data(path, layered=True)
    except SourceError as error:
        return waiting(path) if goes_on(path) else plain(404, say(error.key, **error.values))
    return served(data["name"], data, SCRIPTS, back)


def run_data(path: Path, layered: bool) -> dict[str, Any]:
    """The data of a run's page; `running`; and `from`: where its metrics.jsonl ended before they were read.

    Raises:
        SourceError: nothing was recorded yet.
    """
    offset = Tail(path / METRICS, None).offset
    history = read_history(path)
    running = goes_on(path, history)
    return {**report_data(history, running, layered), "running": running, "from": offset}


def run_answer(path: Path, rest: str, query: Mapping[str, list[str]], last: str) -> Answer | Stream | None:
    """What lies below the page of a run: its stream and its data."""
    if rest == "events":
        start = last or query.get("from", [""])[0]
        return Stream(_events(path, int(start) if start.isascii() and start.isdigit() and len(start) < 16 else None))
    if rest == "data":
        try:
            data = run_data(path, layered=query.get("layers") == ["1"])
        except SourceError as error:
            return Answer(json.dumps({"error": say(error.key, **error.values)}), JSON_TYPE, 404)
        return Answer(json.dumps(data, allow_nan=False), JSON_TYPE)
    return None


def _events(path: Path, start: int | None) -> Iterator[tuple[str, Any, str] | None]:
    if start is None:
        yield from _until_begun(path)
        return
    tail, heard = Tail(path / METRICS, start), time.monotonic()
    while True:
        lines = tail.read()
        if lines is None:
            yield "again", {}, ""
            return
        if lines:
            heard = time.monotonic()
            yield "rows", lines, str(tail.offset)
        elif not goes_on(path):
            yield "ended", {}, str(tail.offset)
            return
        elif time.monotonic() - heard > HEARTBEAT:
            heard = time.monotonic()
            yield None
        time.sleep(POLL)


def _until_begun(path: Path) -> Iterator[tuple[str, Any, str] | None]:
    while not (path / METRICS).is_file():
        yield None  # whether anybody waits with us
        time.sleep(POLL)
    yield "begun", {}, ""


def served(title: str, data: dict[str, Any], scripts: Sequence[str], back: str | None) -> Answer:
    """A page of show/page as this server gives it: with the way back, and fed where it goes on."""
    text = {
        lang: {**own, **{key: said for key, said in catalogue(lang).items() if key.startswith(FAMILY)}}
        for lang, own in data["text"].items()
    }
    whole = {**data, "text": text, "back": back}
    return Answer(document(title, whole, scripts, live=LIVE.read_text(encoding="utf-8")))


def waiting(path: Path) -> Answer:
    """The page of a run that has not begun; it shows the run once it has."""
    sentences = {lang: catalogue(lang)["board.live.waiting"].format(run=run_name(str(path))) for lang in LANGUAGES}
    page, policy = waiting_page(sentences)
    return Answer(page, policy=policy)


class RunSite:
    """Answers for one run, which need not be there yet.

    Args:
        path: its folder.
    """

    def __init__(self, path: Path):
        self.path = path

    def get(self, path: str, query: Mapping[str, list[str]], last: str) -> Answer | Stream | None:
        """A page, its data or its stream; None where there is nothing at this address."""
        if path == "":
            return run_page(self.path) if begun(self.path) else waiting(self.path)
        return run_answer(self.path, path, query, last)

    def post(self, path: str, body: Any) -> Answer | None:
        """Nothing is taken."""
        return None
