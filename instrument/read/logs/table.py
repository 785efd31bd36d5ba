"""Tables: what the Trainer draws in Colab and Jupyter, as text, HTML or markdown; a model card's; a printed frame.

    Step    Training Loss    Validation Loss    Accuracy
    100     No log           0.693000           0.512000

One row may be a logged step and an evaluation at once. Cells that are no number are unknown.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence

from .console import with_bars
from .log import Log
from .values import Record, canonical, is_known, number

# Words of a head -> our key. Others are metrics of the evaluation where they are capitalized, as the Trainer does.
HEADS = {
    "step": "step",
    "steps": "step",
    "global step": "step",
    "iteration": "step",
    "epoch": "epoch",
    "training loss": "loss",
    "train loss": "loss",
    "loss": "loss",
    "validation loss": "eval_loss",
    "valid loss": "eval_loss",
    "val loss": "eval_loss",
    "eval loss": "eval_loss",
    "evaluation loss": "eval_loss",
    "learning rate": "learning_rate",
    "lr": "learning_rate",
    "grad norm": "grad_norm",
    "gradient norm": "grad_norm",
}
_KNOWN = re.compile(r"(?:training|train|validation|valid|val|eval) loss|learning rate|grad norm|\S+(?: / \S+)*", re.I)
_RULE = re.compile(r"[\s|:+=\-│┃─━┼╋┿╇┏┓┗┛┡┩└┘├┤┬┴┳┻╂┠┨]+")
_WALLS = re.compile(r"[|│┃║]")
_TAG = re.compile(r"<[^<>]*>")
_NO_NUMBER = re.compile(r"no log|-|none|n/a|<?na>?|\d+:\d\d(?::\d\d)?|", re.IGNORECASE)
# A loss of fewer digits may well be the same twice.
DIGITS = 4


def read_table(text: str) -> Log | None:
    """The log of every table in a text; None where there is none."""
    text = from_html(text)
    found = [(at, record) for at, record in _stacked(text) if is_known(record)]
    found = found or [(at, record) for at, record in _rows(text) if is_known(record)]
    return with_bars(text, found) if found else None


def from_html(text: str) -> str:
    """The text with tables as lines of cells between tabs, and no other tags."""
    if not re.search(r"<t[drh]\b", text, re.IGNORECASE):
        return text
    text = re.sub(r">\s+<", "><", text)
    text = re.sub(r"</t[dh]>", "\t", text, flags=re.IGNORECASE)
    text = re.sub(r"<(?:/tr|/p|/div|br)\b[^<>]*>", "\n", text, flags=re.IGNORECASE)
    text = re.sub(r"<table\b[^<>]*>", "\n", text, flags=re.IGNORECASE)
    return html.unescape(_TAG.sub("", text))


def _rows(text: str) -> Iterator[tuple[int, Record]]:
    """Rows below a line that is a head."""
    names: list[str] | None = None
    before, at = "", 0
    for line in text.split("\n"):
        place, at = at, at + len(line) + 1
        if not line.strip() or _RULE.fullmatch(line) or len(line) > 4000:
            continue
        head = _head(line)
        if head is not None:
            names, before = head, ""
        elif names is not None:
            cells = _cells(line, len(names))
            if cells is None:
                names = None if not re.search(r"\d+/\d+", line) else names
                continue
            yield place, _record(names, cells, before)
            before = cells[names.index("loss")] if "loss" in names else ""


def _stacked(text: str) -> Iterator[tuple[int, Record]]:
    """A table copied with one cell a line."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    for start, line in enumerate(lines):
        if line.lower() not in ("step", "epoch") or start + 2 >= len(lines):
            continue
        end = start
        while end < len(lines) and end - start < 40 and not _is_cell(lines[end]):
            end += 1
        names = [column_name(cell) for cell in lines[start:end]]
        if end - start < 2 or "loss" not in names:
            continue
        before = ""
        for first in range(end, len(lines) - len(names) + 1, len(names)):
            cells = lines[first : first + len(names)]
            if not all(map(_is_cell, cells)):
                break
            yield start, _record(names, cells, before)
            before = cells[names.index("loss")]


def _head(line: str) -> list[str] | None:
    """The keys of a head; it names a step or an epoch, and a loss."""
    if "loss" not in line.lower() or any(mark in line for mark in "{}=:"):
        return None
    names = [column_name(cell) for cell in _split(line)]
    if len(names) < 2 or not {"step", "epoch"} & set(names):
        names = [column_name(cell) for cell in _KNOWN.findall(line)]
    if not {"step", "epoch"} & set(names) or not {"loss", "eval_loss"} & set(names):
        return None
    return None if any(number(name) != name for name in names) else names


def column_name(cell: str) -> str:
    """The key of a head's cell: `Matthews Correlation` -> eval_matthews_correlation, `rewards / chosen` as it is."""
    words = " ".join(cell.replace("_", " ").split()).lower()
    if words in HEADS:
        return HEADS[words]
    cell = cell.strip().replace(" / ", "/")
    if not cell[:1].isupper() or cell.lower().startswith("eval") or "/" in cell:
        return cell
    return "eval_" + "_".join(cell.lower().split())


def _split(line: str) -> list[str]:
    if _WALLS.search(line):
        return [cell.strip() for cell in _WALLS.split(line.strip().strip("|│┃║"))]
    if "\t" in line.strip():
        return [cell.strip() for cell in line.strip("\n").rstrip("\t").split("\t")]
    if "," in line:
        return [cell.strip().strip('"') for cell in line.split(",")]
    return re.split(r"\s{2,}", line.strip())


def _cells(line: str, n: int) -> list[str] | None:
    """The n cells of a row; a printed frame has its index before them."""
    for cells in (_split(line), re.sub(r"no log", "-", line, flags=re.IGNORECASE).split()):
        if len(cells) == n + 1 and cells[0].isdigit():
            cells = cells[1:]
        if len(cells) == n and all(map(_is_cell, cells)) and any(isinstance(number(cell), float) for cell in cells):
            return cells
    return None


def _is_cell(cell: str) -> bool:
    return isinstance(number(cell), float) or bool(_NO_NUMBER.fullmatch(cell))


def _record(names: Sequence[str], cells: Sequence[str], before: str) -> Record:
    """A row; a training loss that an evaluation's row repeats is not logged anew."""
    pairs = zip(names, map(number, cells), strict=True)
    values = {name: value for name, value in pairs if isinstance(value, float)}
    again = "loss" in names and cells[names.index("loss")] == before
    if again and "eval_loss" in names and len(before.replace(".", "").strip("0")) >= DIGITS:
        values.pop("loss", None)
    return canonical(values)
