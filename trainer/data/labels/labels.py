"""What a label is: the kinds transformers knows, the names of the classes, and a label as numbers.

    single_label_classification   int64 [1], the class; of tokens int64 [length]
    multi_label_classification    float32 [n], 1 for every class the row has
    regression                    float32 [1], the value

Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...config.sections import label_name
from ...errors import kind_of_value
from ..readers import BadRow

SINGLE, SEVERAL, VALUE = "single_label_classification", "multi_label_classification", "regression"
IGNORED = -100
MAX_SHOWN = 60


@dataclass(frozen=True)
class Labels:
    """What the labels of a data set are.

    Attributes:
        task: "seq_cls" or "token_cls".
        problem_type: as transformers' configs call it.
        names: of the classes, in the order of their numbers; empty for values.
    """

    task: str
    problem_type: str
    names: tuple[str, ...] = ()

    @property
    def n_outputs(self) -> int:
        """Width of the head."""
        return len(self.names) or 1

    def encoded(self, label: Any) -> np.ndarray:
        """A row's label as numbers.

        Raises:
            BadRow: it is none of these labels.
        """
        if self.problem_type == VALUE:
            return np.array([as_number(label)], np.float32)
        if self.problem_type == SINGLE:
            return np.array([self.number(label)], np.int64)
        if is_multi_hot(label, len(self.names)):
            return np.array(label, np.float32)
        found = np.zeros(len(self.names), np.float32)
        found[[self.number(item) for item in label]] = 1
        return found

    def number(self, label: Any) -> int:
        """The number of a class.

        Raises:
            BadRow: there is no such class.
        """
        name = name_of(label)
        if name not in self.names:
            known = ", ".join(self.names)
            raise BadRow(("data.label_unseen", {"label": name[:MAX_SHOWN], "known": known[: 5 * MAX_SHOWN]}))
        return self.names.index(name)


def is_missing(label: Any) -> bool:
    """Whether a row has no label: none, an empty text, or NaN, as a table's empty cell is read."""
    return label is None or label == "" or (isinstance(label, float) and math.isnan(label))


def kind_of(label: Any) -> str:
    """What kind of thing a label is: "list", "value" (a number with a decimal point) or "name".

    Raises:
        BadRow: it is none of these.
    """
    if isinstance(label, (list, tuple)):
        for item in label:
            if is_missing(item):
                raise BadRow(("data.no_label", {}))
            if kind_of(item) == "list":
                raise BadRow(("data.label_type", {"kind": "list of lists"}))
        return "list"
    if isinstance(label, float):
        if not math.isfinite(label):
            raise BadRow(("data.label_not_finite", {"label": label}))
        return "value"
    if isinstance(label, (str, bool, int)):
        return "name"
    raise BadRow(("data.label_type", {"kind": kind_of_value(label)}))


def name_of(label: Any) -> str:
    """What a class is called; 1.0 is "1".

    Raises:
        BadRow: it is not one class.
    """
    if isinstance(label, float) and label.is_integer():
        return str(int(label))
    if isinstance(label, float | list | tuple):
        raise BadRow(("data.label_not_class", {"label": str(label)[:MAX_SHOWN]}))
    return label_name(label).strip()


def as_number(label: Any) -> float:
    """A value to be predicted; a number in a text file is text.

    Raises:
        BadRow: it is no finite number.
    """
    try:
        value = math.nan if isinstance(label, bool | list | tuple) else float(label)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        raise BadRow(("data.label_not_number", {"label": str(label)[:MAX_SHOWN]}))
    return value


def is_multi_hot(label: Any, n: int) -> bool:
    """Whether a list says 0 or 1 of every class, as transformers wants it, rather than naming those of the row."""
    return len(label) == n and all(not isinstance(item, str) and item in (0, 1) for item in label)


def problem_type_of(labels: Sequence[Any]) -> str:
    """What kind the labels of a source are, as transformers decides it: integers and names are classes.

    Args:
        labels: of its rows, none of them missing.
    """
    kinds = {kind_of(label) for label in labels}
    if "list" in kinds:
        return SEVERAL
    if "value" in kinds or _is_text_of_values(labels):
        return VALUE
    return SINGLE


def _is_text_of_values(labels: Sequence[Any]) -> bool:
    """Whether all are texts of numbers, some with a decimal point, as a value in CSV is."""
    try:
        values = [float(label) for label in labels if isinstance(label, str)]
    except ValueError:
        return False
    return bool(values) and len(values) == len(labels) and not all(value.is_integer() for value in values)


def names_in(labels: Sequence[Any], problem_type: str) -> tuple[str, ...]:
    """The classes that occur: numbers by size, names by alphabet; of 0/1 lists their places.

    Args:
        labels: encodable rows' labels; of tokens those of all of them, one after the other.
        problem_type: what they are.
    """
    if problem_type == SEVERAL:
        lengths = {len(label) for label in labels}
        if len(lengths) == 1 and all(is_multi_hot(label, len(label)) for label in labels):
            return tuple(map(str, range(lengths.pop())))
        labels = [item for label in labels for item in label]
    found = {name_of(label) for label in labels}
    numbers = all(name.lstrip("-").isdigit() for name in found)
    return tuple(sorted(found, key=int if numbers else None))
