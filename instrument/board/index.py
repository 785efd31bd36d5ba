"""Cards that were made before, kept outside of the runs: $XDG_CACHE_HOME/lora-train/board/<digits of the folder>.json.

A card counts as long as its run's stamp and the rules that judged it are the same. What cannot be kept is made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .find import Found

FORMAT = 1
ROOMS = ("catalogue", "judge", "read", "show", "advise", "board")
"""What a card is made by: when one of these changes, it is made again."""


@cache
def rules() -> str:
    """A digest of the code that makes cards, by the sizes and times of its files."""
    try:
        digest = hashlib.sha256(version("lora-vitals").encode())
    except PackageNotFoundError:
        digest = hashlib.sha256()
    top = Path(__file__).resolve().parent.parent
    for room in ROOMS:
        for path in sorted((top / room).rglob("*")):
            if path.suffix in (".py", ".json"):
                facts = path.stat()
                digest.update(f"{path.name} {facts.st_size} {facts.st_mtime_ns}\n".encode())
    return f"{FORMAT} {digest.hexdigest()[:20]}"


def cache_folder() -> Path:
    """Where the cards of every folder are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or ""
    folder = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    return folder / "lora-train" / "board"


class Index:
    """The cards of one folder's runs.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path):
        name = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:20]
        self.path = cache_folder() / f"{name}.json"
        self._lock = threading.Lock()
        self._cards: dict[str, tuple[str, dict[str, Any]]] = {}
        self._changed = False
        try:
            kept = json.loads(self.path.read_text(encoding="utf-8"))
            if kept["rules"] == rules():
                self._cards = {str(id): (str(stamp), dict(card)) for id, (stamp, card) in kept["cards"].items()}
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            self._cards = {}  # there is none, or something else wrote it

    def get(self, one: Found) -> tuple[dict[str, Any] | None, bool]:
        """The card that is known of a run, and whether it still holds."""
        with self._lock:
            stamp, card = self._cards.get(one.id, ("", None))
        return card, card is not None and stamp == one.stamp and bool(card.get("judged"))

    def put(self, one: Found, card: dict[str, Any]) -> None:
        """Keeps a card."""
        with self._lock:
            self._cards[one.id] = (one.stamp, card)
            self._changed = True

    def save(self, known: Iterable[str]) -> None:
        """Writes what has changed; of runs that are gone nothing is kept.

        Args:
            known: ids of the runs that are there.
        """
        with self._lock:
            kept = set(known)
            if not self._changed and kept >= self._cards.keys():
                return
            self._cards = {id: card for id, card in self._cards.items() if id in kept}
            text = json.dumps({"rules": rules(), "cards": self._cards}, separators=(",", ":"))
            self._changed = False
        with contextlib.suppress(OSError):
            _write(self.path, text)


def _write(path: Path, text: str) -> None:
    """Whole or not at all; two boards of one folder do not meet in the temporary file."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
