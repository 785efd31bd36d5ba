"""Rows of text and label as the source has them, each with its place in a message.

    {"text": ..., "label": ...}                      a text, or with "text_pair" two of them
    {"tokens": [...], "labels": [...]}               words and a label for each (token_cls)

Other usual names are read too, which is said; `data.columns` names any others.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ...config.schema import DataSection
from ...errors import kind_of_value
from ..examples import BadRows, renamed_rows
from ..fields import Fault, printable
from ..formats import DETECTION_ROWS, missing, require_object, text_faults
from ..readers import BadRow, Where
from ..sources import Source
from .labels import IGNORED, is_missing, kind_of

# (first, second) of a pair, as the data sets of GLUE and their like call them; the first that rows have is read.
PAIRS = (
    ("text", "text_pair"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
)
TEXTS = ("text", "sentence", "document", "review", "content", "comment", "title", "question")
LABELS = ("label", "labels", "class", "category", "sentiment", "score", "stars", "rating", "target")
WORDS = ("tokens", "words")
TAGS = ("labels", "label", "ner_tags", "tags", "pos_tags")


@dataclass(frozen=True)
class Labelled:
    """A row.

    Attributes:
        index: 0-based, in the source.
        where: names it in a message.
        text: what is classified, a pair, or words.
        label: as read; None where there is none and none is needed.
    """

    index: int
    where: Where
    text: str | tuple[str, str] | tuple[str, ...]
    label: Any


@dataclass(frozen=True)
class Fields:
    """What the rows call text, second text and label; `second` is empty where there is one text."""

    text: str
    second: str
    label: str


def read_labelled(
    origin: Source, data: DataSection, task: str, limit: int | None, bad: BadRows, needs_label: bool = True
) -> tuple[list[Labelled], Fields, list[str]]:
    """The rows that can be used, what their fields are called, and the fields that are not used.

    Args:
        origin: where they are.
        data: columns.
        task: seq_cls or token_cls.
        limit: use only the first rows.
        bad: takes the others.
        needs_label: whether a row without a label is one of them.
    """
    rows = renamed_rows(itertools.islice(origin.rows(), limit), data.columns)
    opening = list(itertools.islice(rows, DETECTION_ROWS))
    fields = fields_of([row for _, row in opening if isinstance(row, dict)], task, data)
    kept: list[Labelled] = []
    unused: dict[str, None] = {}
    for index, (where, row) in enumerate(itertools.chain(opening, rows)):
        try:
            kept.append(_read(index, where, row, fields, task, needs_label))
            unused |= {str(field): None for field in row if field not in vars(fields).values()}
        except BadRow as fault:
            bad.add(fault, where)
    return kept, fields, [printable(field) for field in unused]


def fields_of(rows: Sequence[dict[str, Any]], task: str, data: DataSection) -> Fields:
    """What the first rows call their text and label."""
    there = {str(field) for row in rows for field in row}
    if task == "token_cls":
        return Fields(_first(WORDS, there), "", _first(TAGS, there))
    label = "label" if "label" in data.columns else _first(LABELS, there)
    for first, second in PAIRS:
        if {first, second} <= there and label not in (first, second):
            return Fields(first, second, label)
    return Fields(_first([name for name in TEXTS if name != label], there), "", label)


def _first(names: Sequence[str], there: set[str]) -> str:
    return next((name for name in names if name in there), names[0])


def _read(index: int, where: Where, row: Any, fields: Fields, task: str, needs_label: bool) -> Labelled:
    require_object(row)
    words = task == "token_cls"
    faults = [*(_word_faults(row, fields) if words else _text_faults(row, fields))]
    label = row.get(fields.label) if needs_label else None
    if is_missing(label):
        if needs_label:
            has = fields.label in row
            faults.append(("data.no_label", {"field": fields.label}) if has else missing(row, fields.label))
        label = None
    elif not faults:
        faults += _tag_faults(row, fields) if words else _label_faults(label)
    if faults:
        raise BadRow(*faults)
    if words:
        return Labelled(index, where, tuple(row[fields.text]), label)
    text = row[fields.text]
    return Labelled(index, where, (text, row[fields.second] or "") if fields.second else text, label)


def _text_faults(row: dict[str, Any], fields: Fields) -> Iterator[Fault]:
    for field in filter(None, (fields.text, fields.second)):
        if field not in row:
            yield missing(row, field)
        elif field == fields.text or row[field] is not None:
            yield from text_faults(field, row[field], may_be_empty=field == fields.second)


def _word_faults(row: dict[str, Any], fields: Fields) -> Iterator[Fault]:
    words = row.get(fields.text)
    if fields.text not in row:
        yield missing(row, fields.text)
    elif not isinstance(words, list) or not words:
        yield "data.not_words", {"field": fields.text, "kind": kind_of_value(words) if words else "empty"}
    else:
        yield from (fault for word in words for fault in text_faults(fields.text, word))


def _label_faults(label: Any) -> list[Fault]:
    try:
        kind_of(label)
    except BadRow as bad:
        return [(key, {"field": "label", **values}) for key, values in bad.faults]
    return []


def _tag_faults(row: dict[str, Any], fields: Fields) -> list[Fault]:
    tags, words = row[fields.label], row[fields.text]
    if not isinstance(tags, list):
        return [("data.label_type", {"kind": kind_of_value(tags)})]
    if len(tags) != len(words):
        return [("data.label_count", {"n": len(tags), "words": len(words)})]
    return [fault for tag in tags for fault in _tag_fault(tag)]


def _tag_fault(tag: Any) -> list[Fault]:
    if is_missing(tag):
        return [("data.no_label", {"field": "label"})]
    if isinstance(tag, bool | float | list | dict):
        return [("data.label_type", {"kind": kind_of_value(tag)})]
    return [] if tag == IGNORED else _label_faults(tag)
