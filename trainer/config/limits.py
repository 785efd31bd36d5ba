"""What no number of the configuration can be, whatever its key is: a flag, or more than anything can count to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from pydantic_core import PydanticKnownError

# Whole numbers are sizes and counts: what C counts with an int, so that 64 bits hold the product of some of them.
LARGEST = 2**31 - 1
# Seeds may be any number that a float holds exactly.
OTHERS = {"seed": 2**53 - 1, "data_seed": 2**53 - 1}
# Steps of a run: the rate of each is worked out before the first, for which transformers' schedules take a minute.
MOST_STEPS = 10_000_000
EPOCHS = "num_train_epochs"


def refuse_flag(value: Any, annotation: Any) -> None:
    """Refuses true where a number is wanted: pydantic takes it for 1, and `--lora.r` without a value is true.

    Raises:
        PydanticKnownError: see above.
    """
    kinds = set(_kinds(annotation))
    if bool not in kinds and kinds & {int, float} and any(isinstance(item, bool) for item in _items(value)):
        raise PydanticKnownError("float_type" if float in kinds else "int_type")


def refuse_too_many(value: Any, key: str) -> None:
    """Refuses a count that nothing could be made of.

    Raises:
        PydanticKnownError: see above.
    """
    largest, counts = OTHERS.get(key, LARGEST), (int, float) if key == EPOCHS else int
    if any(isinstance(item, counts) and item > largest for item in _items(value)):
        raise PydanticKnownError("less_than_equal", {"le": largest})


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _kinds(annotation: Any) -> Iterator[Any]:
    """The types that a type is made of: int and None of list[int] | None."""
    yield annotation
    for part in get_args(annotation):
        yield from _kinds(part)
