"""JSON and YAML from a file that anything may have damaged."""

from __future__ import annotations

import json
import math
from typing import Any

# Of int64: what is counted, a step or a rank, is below it.
LARGEST = 2**63
# An int of fewer is within int64.
DIGITS = 19
# Lists and dicts within each other. What json still parses may be too deep for whoever walks it.
DEEPEST = 100


def damage() -> tuple[type[Exception], ...]:
    """What reading a table may raise that is torn, damaged or of another version."""
    import pyarrow as pa

    return pa.ArrowException, MemoryError, LookupError, OSError, TypeError, ValueError


def parse_own_json(text: str | bytes) -> Any:
    """What json.loads says; NaN and Infinity are read, as Python writes them.

    Raises:
        ValueError: it is no JSON, or holds a number beyond int64 or float64.
        RecursionError: it is nested too deep.
    """
    return _shallow_json(text, json.loads(text, parse_int=_whole, parse_float=_finite))


def parse_foreign_json(text: str) -> Any:
    """The same of what others write, who may count beyond int64: such a number is a float, and may be infinite.

    Raises:
        ValueError: it is no JSON.
        RecursionError: it is nested too deep.
    """
    found = json.loads(text, parse_int=lambda digits: int(digits) if len(digits) < DIGITS else float(digits))
    return _shallow_json(text, found)


def parse_yaml(text: str) -> Any:
    """What yaml.safe_load says.

    Raises:
        ValueError: it holds a number beyond int64, or what is of another type than its tag says.
        yaml.YAMLError: it is no YAML.
        RecursionError: it is nested too deep.
    """
    import yaml

    try:
        found = yaml.safe_load(text)
    except (
        AttributeError,
        LookupError,
        OverflowError,
        TypeError,
    ) as error:  # of the readers of its types, as of "!!timestamp x"
        raise ValueError(f"a value of another type than its tag: {error}") from error
    waiting, seen = [found], set()  # an alias may stand within what it names
    while waiting:
        one = waiting.pop()
        if isinstance(one, int) and not -LARGEST <= one < LARGEST:
            raise ValueError("a number beyond int64")
        if isinstance(one, (dict, list, set, tuple)) and id(one) not in seen:
            seen.add(id(one))
            waiting += [*one, *one.values()] if isinstance(one, dict) else one
    return shallow(found)


def shallow(value: Any) -> Any:
    """The same value.

    Raises:
        RecursionError: it is nested deeper than DEEPEST, or holds itself.
    """
    if isinstance(value, (dict, list, set, tuple)):
        _height(value, set(), {})
    return value


def _shallow_json(text: str | bytes, value: Any) -> Any:
    """The same; a line of numbers is not walked through."""
    brackets = (b"[", b"{") if isinstance(text, bytes) else ("[", "{")
    return shallow(value) if sum(map(text.count, brackets)) > DEEPEST else value  # pyright: ignore[reportArgumentType]


def _height(value: Any, around: set[int], known: dict[int, int]) -> int:
    """How many are within each other from here on; what an alias of YAML names is looked at once."""
    own = id(value)
    if own not in known and own not in around and len(around) < DEEPEST:
        around.add(own)
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        nested = (part for part in parts if isinstance(part, (dict, list, set, tuple)))
        known[own] = 1 + max((_height(part, around, known) for part in nested), default=0)
        around.discard(own)
    if own not in known or len(around) + known[own] > DEEPEST:
        raise RecursionError(f"nested more than {DEEPEST} deep")
    return known[own]


def _whole(digits: str) -> int:
    value = int(digits)
    if not -LARGEST <= value < LARGEST:
        raise ValueError(f"a number of {len(digits)} digits")
    return value


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"the number {digits[:20]}, which is beyond float64")
    return value
