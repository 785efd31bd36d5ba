"""Which layers and weights bitsandbytes keeps in 4 bits, told without importing it.

Where nobody has imported bitsandbytes nothing is one of its objects: 16-bit models need neither the import, which takes
a second, nor the package.
"""

from __future__ import annotations

import sys
from typing import Any


def is_4bit_linear(module: object) -> bool:
    """Whether a layer is bitsandbytes' `Linear4bit`."""
    return _is("Linear4bit", module)


def is_4bit_weight(parameter: object) -> bool:
    """Whether a parameter is bitsandbytes' `Params4bit`."""
    return _is("Params4bit", parameter)


def _is(name: str, value: object) -> bool:
    library: Any = sys.modules.get("bitsandbytes.nn")
    return library is not None and isinstance(value, getattr(library, name))
