"""Tags and notes of runs: FOLDER/.lora-board.json, beside the runs and never in one.

    {"version": 1, "runs": {"koalpaca-3": {"tags": ["keep"], "note": "the first with r 16"}}}

By the run's path below the folder, so that a folder may be moved or copied with its notes. The file is read again
before each change, and written whole; one that cannot be read is left as it is.
"""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from typing import Any

from ..messages import say
from ..read.files import read_own, write_text

FILE = ".lora-board.json"
MOST_TAGS, LONGEST_TAG, LONGEST_NOTE = 20, 60, 2000
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
LARGEST = 1 << 24


class MarksError(ValueError):
    """Tags or a note that cannot be kept; says why."""


class Marks:
    """The tags and notes of one folder.

    Args:
        root: the folder that is shown.
    """

    def __init__(self, root: Path):
        self.path = root / FILE
        self._lock = threading.Lock()

    def read(self) -> dict[str, dict[str, Any]]:
        """By a run's name its tags and its note; nothing where the file is missing or cannot be read."""
        try:
            return _runs(self._load())
        except MarksError:
            return {}

    def write(self, name: str, tags: Any, note: Any) -> dict[str, Any]:
        """Keeps the tags and the note of a run, and returns them as they are kept.

        Raises:
            MarksError: they are too long, or the file holds something else.
            OSError: it cannot be written.
        """
        kept = checked(tags, note)
        with self._lock:
            whole = self._load()
            runs = whole.setdefault("runs", {})
            if kept["tags"] or kept["note"]:
                runs[name] = kept
            else:
                runs.pop(name, None)
            write_text(self.path, json.dumps({"version": 1, **whole}, ensure_ascii=False, indent=1) + "\n")
        return kept

    def _load(self) -> dict[str, Any]:
        try:
            if self.path.stat().st_size > LARGEST:
                raise MarksError(say("board.marks.damaged", path=self.path))
            found = json.loads(read_own(self.path))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            raise MarksError(say("board.marks.damaged", path=self.path)) from error
        if not isinstance(found, dict) or not isinstance(found.get("runs", {}), dict):
            raise MarksError(say("board.marks.damaged", path=self.path))
        return found


def _runs(whole: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found = {}
    for name, own in whole.get("runs", {}).items():
        if not isinstance(own, dict):
            continue
        try:
            found[name] = checked(own.get("tags", []), own.get("note", ""))
        except MarksError:
            continue
    return found


def checked(tags: Any, note: Any) -> dict[str, Any]:
    """Tags and a note without control characters and doubles.

    Raises:
        MarksError: they are no text, too many, or too long.
    """
    if not isinstance(note, str) or not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise MarksError(say("board.marks.no_text"))
    clean = [" ".join(_CONTROL.sub("", tag).split()) for tag in tags]
    clean = list(dict.fromkeys(tag for tag in clean if tag))
    note = _CONTROL.sub("", note).strip()
    if len(clean) > MOST_TAGS or any(len(tag) > LONGEST_TAG for tag in clean) or len(note) > LONGEST_NOTE:
        raise MarksError(say("board.marks.too_long", tags=MOST_TAGS, tag=LONGEST_TAG, note=LONGEST_NOTE))
    return {"tags": clean, "note": note}
