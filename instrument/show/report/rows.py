"""The training rows of a run as points: mean loss a token against the norm of that loss's gradient. Imports no torch.

A page is made to be passed on: texts of the rows are in it only where somebody asked for them, and never a folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...judge.row_ranks import FORGOTTEN, LEARNED, NEVER, ONCE, STEADY, backed_off, rank_rows
from ...judge.row_score import NO_KIND, NOT_FINITE_KIND, PREVIEW, Texts, scored
from ...read.history import History
from ...read.row_log import read_training_rows

if TYPE_CHECKING:
    import pandas as pd

KINDS = (NO_KIND, NOT_FINITE_KIND, "loss", "grad", "duplicate")
COURSES = (LEARNED, FORGOTTEN, NEVER, STEADY, ONCE)
# So many points a page holds: with those of 10,000 rows it stays below 300 KB more, texts and all.
KEPT, TEXT_BYTES = 2000, 100_000
DIGITS = 4
_NUMBERS = {"loss": "loss_mean", "first": "loss", "last": "loss_last", "grad": "grad_norm", "loss_z": "loss_z",
            "grad_excess_z": "grad_excess_z", "share": "share", "token_share": "token_share",
            "score": "score"}  # fmt: skip


def training_rows(history: History, texts: Texts | None = None) -> dict[str, Any] | None:
    """Lists of one length, a place for each row that is drawn, worst first; None where no row was recorded.

    Args:
        texts: what the rows themselves tell, and their previews; None: nobody opened the data.
    """
    if history.run is None:
        return None
    frame = read_training_rows(history.run.path)
    if not len(frame):
        return None
    found = scored(rank_rows(frame, backed_off(history.steps)), texts, None)
    if texts is None:
        cutoff = history.number("data.cutoff_len")
        found["cut"] = found["n_tokens"] >= (np.inf if cutoff is None else cutoff)
    drawn = found.iloc[_kept(len(found), int((found["kind"] != NO_KIND).sum()))]
    rows = drawn["row"].tolist()
    file = data_file(history)
    return {
        "of": len(found),
        "flagged": int((found["kind"] != NO_KIND).sum()),
        "whole": bool(frame.attrs["whole"]),
        "file": file.name if file else None,
        "rows": rows,
        "lines": _lines(file, rows),
        "n": drawn["n_supervised"].tolist(),
        "seen": drawn["seen"].tolist(),
        "kind": [KINDS.index(kind) for kind in drawn["kind"]],
        "course": [COURSES.index(course) for course in drawn["course"]],
        "cut": drawn["cut"].astype(int).tolist(),
        "like": _copies(drawn),
        **{name: _short(drawn[column].to_numpy("float64")) for name, column in _NUMBERS.items()},
        "texts": None if texts is None else _texts(texts, rows),
    }


def _kept(n: int, flagged: int) -> np.ndarray:
    """Places of those that are drawn: half of the room for the worst, at most, the rest for every so many of others."""
    if n <= KEPT:
        return np.arange(n)
    worst = min(max(flagged, KEPT // 4), KEPT // 2)
    return np.concatenate([np.arange(worst), np.linspace(worst, n - 1, KEPT - worst).round().astype(int)])


def _short(values: np.ndarray) -> list[float | None]:
    return [float(f"{value:.{DIGITS}g}") if np.isfinite(value) else None for value in values.tolist()]


def _copies(drawn: pd.DataFrame) -> list[list[float] | None]:
    """The other row and the share that stands there, of copies."""
    own = zip(drawn["like"], drawn["duplicate"], drawn["kind"], strict=True)
    return [[int(like), round(share, 2)] if kind == "duplicate" else None for like, share, kind in own]


def _texts(texts: Texts, rows: list[int]) -> dict[str, str]:
    """How rows begin, the worst first, as many as there is room for."""
    kept: dict[str, str] = {}
    room = TEXT_BYTES
    for row in rows:
        text = texts.previews.get(row, "")[:PREVIEW]
        room -= len(text.encode()) + 12
        if room < 0:
            break
        if text:
            kept[str(row)] = text
    return kept


def data_file(history: History) -> Path | None:
    """The file that the rows came from, where it is one."""
    train = history.setting("data.train")
    path = Path(train) if isinstance(train, str) else None
    return path if path is not None and path.suffix.lower() in (".jsonl", ".json", ".csv", ".txt", ".parquet") else None


def _lines(file: Path | None, rows: list[int]) -> list[int | None] | None:
    """The line of each row in a file of one row a line, where it can be read."""
    if file is None or file.suffix.lower() not in (".jsonl", ".txt"):
        return None
    try:
        with file.open("rb") as lines:
            numbers = [number for number, line in enumerate(lines, start=1) if line.strip()]
    except OSError:
        return None
    return [numbers[row] if row < len(numbers) else None for row in rows]
