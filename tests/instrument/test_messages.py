from __future__ import annotations

import re
import string

import pytest
from lora_train.instrument.messages import catalogue, language, say

from ..conftest import ROOT


def placeholders(sentence: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(sentence) if name}


def test_both_languages_have_the_same_keys_and_placeholders():
    english, korean = catalogue("en"), catalogue("ko")
    assert english.keys() == korean.keys()
    different = {key for key in english if placeholders(english[key]) != placeholders(korean[key])}
    assert different == set()


def test_every_key_in_the_source_exists_and_every_sentence_is_used():
    source = "".join(path.read_text() for top in ("instrument", "trainer") for path in (ROOT / top).rglob("*.py"))
    used = set(re.findall(r'"([a-z_]+(?:\.\w+)+)"', source))
    asked = set(re.findall(r'(?:say|problem)\(\s*"([a-z_.0-9]+)"', source))
    assert asked <= catalogue("en").keys()
    # pydantic's error types are looked up by name
    built = {key for key in catalogue("en") if key.endswith(".hint") or re.match(r"config\.[a-z]+_[a-z_]+$", key)}
    built |= {"config.invalid", "config.missing", "config.lora.target_modules", "config.precision.loss_scale"}
    built |= {"config.training.save_safetensors"}
    # the reasons why a module is not fused
    built |= {
        f"patch.{reason}" for reason in re.findall(r'"([a-z_0-9]+)"', (ROOT / "instrument/record/patch.py").read_text())
    }
    # and why batches are padded
    text = (ROOT / "trainer/model/padding_free.py").read_text()
    built |= {f"padding.{reason}" for reason in re.findall(r'"([a-z]+)"', text)}
    # a finding is a word in its rule, and a page asks for its own sentences without their prefix
    words = set(re.findall(r'"([a-z_]+)"', source)) | {"eval_loss_better", "eval_loss_alike"}
    words |= {f"{what}_{how}" for what in ("loss", "speed", "memory") for how in ("better", "alike")}
    words |= {f"clipped_{how}" for how in ("always", "often", "rarely")}
    pages = "".join(path.read_text() for path in (ROOT / "instrument/show/page").glob("*.js"))
    asked_of = set(re.findall(r'\bt\("([a-z_.]+)"\)', pages)) | set(re.findall(r'"([a-z_.]+)"', pages))
    built |= {f"{family}.{word}" for family in ("explain", "compare") for word in words}
    built |= {f"explain.{kind}.{word}" for kind in ("what", "verdict") for word in words}
    built |= {f"{page}.{word}" for page in ("report", "compare.page") for word in asked_of}
    built |= {f"report.{kind}.{word}" for kind in ("metric", "time") for word in asked_of}
    built |= {f"report.action.{action}" for action in ("heal", "rollback", "stop")}
    # the kinds of trouble, and what was tried
    families = ("collapse.title.", "collapse.label.", "collapse.where_", "collapse.stock_", "remedy.")
    built |= {key for key in catalogue("en") if key.startswith(families)}
    assert catalogue("en").keys() - used - built == set()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"LORA_TRAIN_LANG": "ko", "LANG": "en_US.UTF-8"}, "ko"),
        ({"LANG": "ko_KR.UTF-8"}, "ko"),
        ({"LC_ALL": "C.UTF-8", "LANG": "ko_KR.UTF-8"}, "en"),
        ({}, "en"),
    ],
)
def test_language_of_the_user(monkeypatch, variables, expected):
    for name in ("LORA_TRAIN_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert language() == expected


def test_say_fills_in_the_users_language(monkeypatch):
    assert say("data.empty", source="x.jsonl") == "x.jsonl holds no rows"
    monkeypatch.setenv("LORA_TRAIN_LANG", "ko")
    assert say("data.empty", source="x.jsonl") == "x.jsonl: 행이 하나도 없습니다"
