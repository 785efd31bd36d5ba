"""JSON and YAML from a file that anything may have damaged."""

from __future__ import annotations

import json
import math
from typing import Any

# Of int64: what is counted, a step or a rank, is below it.
LARGEST = 2**63
# An int of fewer is within int64.
DIGITS = 19


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
    return json.loads(text, parse_int=_whole, parse_float=_finite)


def parse_foreign_json(text: str) -> Any:
    """The same of what others write, who may count beyond int64: such a number is a float, and may be infinite.

    Raises:
        ValueError: it is no JSON.
        RecursionError: it is nested too deep.
    """
    return json.loads(text, parse_int=lambda digits: int(digits) if len(digits) < DIGITS else float(digits))


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
    return found


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
