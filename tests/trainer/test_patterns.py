"""Patterns that `re` does not finish are told from those it does, in every setting that peft matches with names."""

from __future__ import annotations

import pytest
from lora_train.trainer import patterns
from lora_train.trainer.patterns import endless

NAMES = ["model.layers.0.self_attn.q_proj", "model.layers.11.mlp.down_proj", "lm_head"]
ENDLESS = r"([\w.]+)+!"


@pytest.fixture(autouse=True)
def little_time(monkeypatch):
    monkeypatch.setattr(patterns, "LIMIT", 1)


@pytest.mark.parametrize("pattern", [ENDLESS, r"(?i)([\w.]+)+!", r"(.*.*)*=", r"((\w|[a-z.])*)*#"])
def test_a_pattern_without_an_end_is_named(pattern):
    assert endless({"target_modules": pattern}, NAMES) == ("target_modules", pattern)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("exclude_modules", ENDLESS),
        ("rank_pattern", {"q_proj": 4, ENDLESS: 8}),
        ("alpha_pattern", {ENDLESS: 8}),
        ("layers_pattern", ["h", ENDLESS]),
        ("layers_pattern", ENDLESS),
        ("modules_to_save", ["lm_head", ENDLESS]),
    ],
)
def test_in_every_setting_that_is_matched(key, value):
    assert endless({"target_modules": ["q_proj"], key: value}, NAMES) == (key, ENDLESS)


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": r".*layers\.\d+\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj"},
        {"target_modules": [ENDLESS, "q_proj"]},  # names there, which peft compares
        {"target_modules": "all-linear", "rank_pattern": {r"layers\.[0-9]+\..*q_proj": 4}, "alpha_pattern": {}},
        {"target_modules": "(", "modules_to_save": None, "layers_pattern": 3},  # refused elsewhere
        {},
    ],
)
def test_what_comes_to_an_end_is_none(settings):
    assert endless(settings, NAMES * 300) is None
