from __future__ import annotations

import pytest
from lora_train.trainer.importer.draft import Draft, Unreadable, flag, interval, names, number, short, whole


def test_numbers_as_people_write_them():
    assert (number("1e-4"), number(3), whole("8"), whole(8.0), interval(0.5), interval("50")) == (
        1e-4,
        3,
        8,
        8,
        0.5,
        50,
    )


@pytest.mark.parametrize("value", [True, None, "x", [1], float("nan"), float("inf"), "1e999", 10**400])
def test_what_is_no_number(value):
    with pytest.raises(Unreadable):
        number(value)


def test_words():
    assert names("a, b,,c ") == ["a", "b", "c"]
    assert [flag(value) for value in (True, "true", "Yes", False, "false", None, 1)] == [
        True,
        True,
        True,
        False,
        False,
        False,
        False,
    ]
    with pytest.raises(Unreadable):
        names([1])


def test_a_value_that_cannot_be_read_is_left_over_and_not_lost():
    draft = Draft("t", {"rate": [1]})
    draft.copy("training.learning_rate", "rate", 1.0)
    assert draft.values == {}
    assert [(left.key, left.value, left.weight) for left in draft.left] == [("rate", "[1]", "unknown")]


def test_a_key_that_nobody_takes_is_weighed_once_and_what_is_off_asks_for_nothing():
    draft = Draft("t", {"fsdp": ["full_shard"], "deepspeed": None, "relora": False, "odd": 1, "tf32": False}).close()
    assert {left.key: left.weight for left in draft.left} == {"fsdp": "memory", "odd": "unknown", "tf32": "harmless"}


def test_what_the_file_does_not_name_is_to_fill_in():
    draft = Draft("t", {}).close()
    assert draft.values == {"model.name_or_path": "owner/model", "data.train": "owner/data"}
    assert draft.remarks["data.train"].startswith("fill in")


def test_a_long_value_is_short_and_in_one_line():
    assert short("a\nb" + "x" * 100) == "a b" + "x" * 54 + "..."


def test_leave_to_run_foreign_code_does_not_come_over():
    draft = Draft("t", {"trust_remote_code": True}).close()
    assert "model.trust_remote_code" not in draft.values
    assert [(left.key, left.matters) for left in draft.left] == [("trust_remote_code", False)]
    assert Draft("t", {"trust_remote_code": False}).close().left == []
