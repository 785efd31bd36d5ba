"""How trials ended, read with suspicion."""

from __future__ import annotations

import pytest
from lora_train.instrument.advise.page import is_study
from lora_train.instrument.advise.page.claims import read_claims

from .build import RATE, claim, study


def test_each_trial_is_its_last_attempt(tmp_path):
    assert not is_study(tmp_path)
    found = read_claims(study(tmp_path))
    assert is_study(tmp_path)
    assert [one.name for one in found] == ["000", "001.2", "002", "003", "004"]
    assert [one.ended for one in found] == ["done", "done", "done", "refused", None]
    assert (found[1].settings, found[1].value, found[1].step) == ({RATE: 1e-3}, 3.0, 60)
    assert [one.is_dead for one in found] == [False, False, False, True, False]


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"ended": "won"}', '{"ended": 3}', "\x00"])
def test_what_is_torn_has_not_ended(tmp_path, text):
    claim(tmp_path, "000")
    (tmp_path / "claims" / "000" / "outcome.json").write_text(text)
    assert [one.ended for one in read_claims(tmp_path)] == [None]


def test_numbers_and_words_of_another_kind_are_left_out(tmp_path):
    claim(tmp_path, "000", ended="done", value="high", step=True, seconds=1e400, settings=3, why="no")
    (found,) = read_claims(tmp_path)
    assert (found.value, found.step, found.seconds, found.settings, found.why) == (None, None, None, {}, None)
