"""What a rule's answer looks like to a script and to a reader."""

from __future__ import annotations

import json
import math

from lora_train.instrument.advise.advice import VERDICTS, Advice, Step
from lora_train.instrument.judge.explain.finding import Phrase

ADVICE = Advice(
    "P3", "against", "advise.p3_vary", {"steps": 100, "most": 200, "n": 2}, ("a", "b"),
    Step("lora-train x", Phrase("advise.cost_run_steps", {"steps": 1200})),
)  # fmt: skip


def test_as_json():
    found = json.loads(json.dumps(ADVICE.as_json("en")))
    assert list(found) == ["rule", "verdict", "evidence", "trials", "next"]
    assert (found["rule"], found["verdict"], found["trials"]) == ("P3", "against", ["a", "b"])
    assert found["evidence"]["key"] == "advise.p3_vary"
    assert found["evidence"]["values"] == {"steps": 100, "most": 200, "n": 2}
    assert found["evidence"]["sentence"].startswith("The runs have from 100 to 200 steps")
    assert found["next"] == "lora-train x   # 1,200 steps"


def test_what_is_not_finite_is_null_and_a_phrase_its_key():
    values = {"lowest": math.nan, "hint": Phrase("advise.hint_late"), "on": True}
    advice = Advice("P4", "not answered", "advise.p15_none", values | {"n": 1})
    assert advice.as_json("en")["evidence"]["values"] == {
        "lowest": None,
        "hint": "advise.hint_late",
        "on": True,
        "n": 1,
    }
    assert advice.next("en") is None
    assert advice.verdict in VERDICTS


def test_a_reader_of_korean_gets_korean():
    assert ADVICE.sentence("ko").startswith("실행 길이가 100스텝부터")
    assert ADVICE.next("ko") == "lora-train x   # 1,200스텝"
