"""Comma-separated exports: W&B's (`"Step","run - train/loss","run - train/loss__MIN"`), TensorBoard's
(`Wall time,Step,Value`, the number named by the file), and plain ones with a column a number.
"""

from __future__ import annotations

import csv
import io
import re

from ..history import SourceError
from .log import Log
from .table import column_name
from .values import STEP_KEYS, Record, canonical, is_known, is_step, number

TENSORBOARD = ["wall time", "step", "value"]
_SPREAD = re.compile(r"__(?:MIN|MAX)$")
_TAG = re.compile(r"tag-(.+)$")
_SPLITS = ("train", "eval", "val", "valid", "validation")
MAX_CELL = 1 << 20


def read_export(name: str, text: str) -> Log | None:
    """The log of an export; None where the text is none.

    Raises:
        SourceError: it holds several runs, or does not say which number it holds.
    """
    text = text.lstrip("\n \t")
    first = text.partition("\n")[0]
    mark = max(",;\t" if name.endswith(".tsv") else ",;", key=first.count)
    if not first.count(mark) or "{" in first:
        return None
    try:
        csv.field_size_limit(MAX_CELL)
        lines = [line for line in csv.reader(io.StringIO(text), delimiter=mark) if line]
    except csv.Error:
        return None
    head = [cell.strip() for cell in lines[0]] if lines else []
    rows = [dict(zip(head, map(_value, line), strict=False)) for line in lines[1:]]
    if [cell.lower() for cell in head] == TENSORBOARD:
        return _tensorboard(name, rows, head)
    if any(" - " in cell for cell in head):
        return _wandb(name, rows, head)
    return _plain(rows, head)


def _value(cell: str) -> float | None:
    value = number(cell.strip())
    return value if isinstance(value, float) else None


def _tensorboard(name: str, rows: list[dict[str, float | None]], head: list[str]) -> Log:
    stem = re.split(r"[\\/]", name)[-1].removesuffix(".csv")
    match = _TAG.search(stem)
    key = _metric(match.group(1) if match else stem)
    if key is None:
        raise SourceError("source.which_number", path=name)
    records = [{"step": row[head[1]], key: row.get(head[2])} for row in rows if row.get(head[1]) is not None]
    return Log([canonical(record) for record in records], partial=True)


def _metric(tag: str) -> str | None:
    """`train_loss`, `train/grad_norm`, `eval-loss (1)` -> the key; None of a name that names no number."""
    tag = re.sub(r"\s*\(\d+\)$", "", tag).strip()
    split, _, rest = re.sub(r"[^A-Za-z0-9]+", "_", tag).strip("_").partition("_")
    if split.lower() in _SPLITS and rest:
        return f"{split.lower()}/{rest}"
    return tag if re.search(r"loss|norm|rate|^lr$|reward|accuracy|epoch", tag, re.IGNORECASE) else None


def _wandb(name: str, rows: list[dict[str, float | None]], head: list[str]) -> Log:
    columns = [cell for cell in head if " - " in cell and not _SPREAD.search(cell)]
    runs = list(dict.fromkeys(cell.rpartition(" - ")[0] for cell in columns))
    if len(runs) > 1:
        raise SourceError("source.many_runs", path=name, n=len(runs), runs=", ".join(runs[:5]))
    axis = next((cell for cell in head if " - " not in cell and _is_step(cell)), None)
    records = []
    for row in rows:
        values = {cell.rpartition(" - ")[2]: row.get(cell) for cell in columns}
        if axis is not None:
            values.setdefault("train/global_step" if "global" in axis else "_step", row.get(axis))
        records.append(_filled(values))
    return _counted(records)


def _is_step(cell: str) -> bool:
    return cell.lower().removeprefix("train/") in STEP_KEYS


def _filled(values: dict[str, float | None]) -> Record:
    """A row without its empty cells; the Trainer's own count comes before W&B's, which counts calls of log."""
    known = {key: value for key, value in values.items() if value is not None}
    if "train/global_step" in known:
        known = {key: value for key, value in known.items() if key != "_step"}
    return canonical(known)


def _counted(records: list[Record]) -> Log:
    """A count of 0, 1, 2, ... is that of calls of log, one a line, and says nothing of steps."""
    steps = [record.get("step") for record in records if is_known(record)]
    if steps and steps[0] == 0 and steps == [float(i) for i in range(len(steps))]:
        records = [{key: value for key, value in record.items() if key != "step"} for record in records]
        return Log(records)
    return Log(records, partial=True)


def _plain(rows: list[dict[str, float | None]], head: list[str]) -> Log | None:
    names = {cell: column_name(cell) if "/" not in cell and not _is_step(cell) else cell for cell in head}
    names = {
        cell: "_step" if cell in ("Step", "step") and "train/global_step" in head else names[cell] for cell in head
    }
    records = [_filled({names[cell]: value for cell, value in row.items() if cell in names}) for row in rows]
    if not any(is_step(record) or "eval_loss" in record for record in records):
        return None
    return _counted(records) if "_step" in head else Log(records, partial=True)
