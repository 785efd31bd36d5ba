"""Takes values out of a study file, and keeps every mistake with its key: numbers, words, choices, ranges."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import Problem, problem
from .space import Choices, Range

SCALES = ("linear", "log")
RANGE = ("low", "high", "scale", "points")


class Reader:
    """Takes values out of a study file and keeps every mistake."""

    def __init__(self, raw: Mapping[str, Any], file: Path):
        self.raw, self.file = raw, file
        self.problems: list[Problem] = []

    def wrong(self, sentence: str, key: str, **values: Any) -> None:
        self.problems.append(problem(sentence, file=self.file, key=key, **values))

    def whole(self, key: str, default: int | None, least: int = 1) -> Any:
        value = self.raw.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            self.wrong("sweep.not_whole", key, value=short(value), least=least)
            return default
        return value

    def word(self, key: str, allowed: tuple[str, ...], default: str | None) -> Any:
        value = self.raw.get(key)
        if value is None or value is False:
            return default
        if value not in allowed:
            self.wrong("sweep.not_one_of", key, value=short(value), allowed=", ".join(allowed))
            return default
        return value


def missing(reader: Reader, key: str) -> int:
    if reader.raw.get(key) is None:
        reader.wrong("sweep.missing", key)
    return 1


def mapping_of(reader: Reader, role: str) -> dict[str, Any]:
    value = reader.raw.get(role)
    if value is None:
        return {}
    if not isinstance(value, dict):
        reader.wrong("sweep.not_mapping", role, value=short(value))
        return {}
    return {str(key): own for key, own in value.items()}


def values_of(reader: Reader, where: str, value: Any) -> Range | Choices | None:
    if isinstance(value, list):
        if len(value) < 2 or any(value.index(one) != i for i, one in enumerate(value)):
            reader.wrong("sweep.few_choices", where, value=short(value))
            return None
        return Choices(tuple(value))
    if not isinstance(value, dict):
        reader.wrong("sweep.no_values", where, value=short(value))
        return None
    return _range_of(reader, where, value)


def _range_of(reader: Reader, where: str, value: dict[Any, Any]) -> Range | None:
    found = len(reader.problems)
    for key in value:
        if key not in RANGE:
            reader.wrong("sweep.range_key", f"{where}.{key}")
    ends = [_number_of(reader, f"{where}.{key}", value.get(key)) for key in ("low", "high")]
    scale, points = value.get("scale", "linear"), value.get("points")
    if scale not in SCALES:
        reader.wrong("sweep.not_one_of", f"{where}.scale", value=short(scale), allowed=", ".join(SCALES))
    if points is not None and (isinstance(points, bool) or not isinstance(points, int) or points < 2):
        reader.wrong("sweep.not_whole", f"{where}.points", value=short(points), least=2)
    if points is None and reader.raw.get("sampler") == "grid":
        reader.wrong("sweep.no_points", where)
    low, high = ends
    if low is not None and high is not None:
        if not low < high:
            reader.wrong("sweep.empty_range", where, low=low, high=high)
        elif scale == "log" and low <= 0:
            reader.wrong("sweep.log_of_zero", where, low=low)
    if len(reader.problems) > found or low is None or high is None:
        return None
    whole = isinstance(value["low"], int) and isinstance(value["high"], int)
    return Range(low, high, scale, points, whole)


def _number_of(reader: Reader, where: str, value: Any) -> float | None:
    try:
        if isinstance(value, bool):
            raise ValueError
        found = float(value)  # YAML takes 1e-5 for text
        if abs(found) == float("inf") or found != found:
            raise ValueError
    except (TypeError, ValueError):
        reader.wrong("sweep.missing" if value is None else "sweep.not_number", where, value=short(value))
        return None
    return found


def short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
