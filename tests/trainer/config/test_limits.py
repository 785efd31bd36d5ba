from __future__ import annotations

import pytest
from lora_train.trainer.config.limits import refuse_flag, refuse_too_many
from pydantic_core import PydanticKnownError


@pytest.mark.parametrize(
    ("annotation", "kind"), [(int, "int_type"), (int | None, "int_type"), (int | float, "float_type")]
)
def test_a_flag_is_no_number(annotation, kind):
    with pytest.raises(PydanticKnownError) as refused:
        refuse_flag(True, annotation)
    assert refused.value.type == kind


@pytest.mark.parametrize("annotation", [bool, bool | int, bool | None, str, list[str]])
def test_a_flag_is_a_value_elsewhere(annotation):
    refuse_flag(True, annotation)


def test_counts_and_seeds_have_limits_of_their_own_and_rates_have_none():
    refuse_too_many(2**31 - 1, "r")
    refuse_too_many(2**40, "seed")
    refuse_too_many(1e300, "max_hours")
    for value, key in [(2**31, "r"), ([1, 2**31], "skip_rows"), (2**53, "seed"), (3e9, "num_train_epochs")]:
        with pytest.raises(PydanticKnownError):
            refuse_too_many(value, key)
