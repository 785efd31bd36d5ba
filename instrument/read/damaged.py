"""JSON from a file that anything may have damaged."""

from __future__ import annotations

import json
import math
from typing import Any

# Of int64: what is counted, a step or a rank, is below it.
LARGEST = 2**63


def parse_json(text: str | bytes) -> Any:
    """What json.loads says; NaN and Infinity are read, as Python writes them.

    Raises:
        ValueError: it is no JSON, or holds a number beyond int64 or float64.
        RecursionError: it is nested too deep.
    """
    return json.loads(text, parse_int=_whole, parse_float=_finite)


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
