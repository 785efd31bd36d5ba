from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from lora_train.trainer.checks.read_config import problems_of
from lora_train.trainer.init.plan import Plan
from lora_train.trainer.init.text import as_yaml, first_sentence, settings_of
from rich.cells import cell_len


@pytest.mark.parametrize("lang", ["en", "ko"])
@pytest.mark.parametrize("precision", ["none", "fp16", "bf16"])
@pytest.mark.parametrize("four_bit", [False, True])
def test_the_yaml_holds_the_plan_and_is_valid(monkeypatch, lang, precision, four_bit):
    monkeypatch.setenv("LORA_TRAIN_LANG", lang)
    plan = Plan(four_bit, True, 512, 2, precision)
    text = as_yaml(plan, "owner/model", "my rows.jsonl", Path("a/first try.yaml"))
    config = yaml.safe_load(text)
    assert config == settings_of(plan, "owner/model", "my rows.jsonl", Path("a/first try.yaml"))
    assert problems_of(config | {"data": {**config["data"], "train": "owner/rows"}}, "x.yaml") == []
    assert config["training"]["output_dir"] == "runs/first try"
    assert "#   lora-train explain 'runs/first try'" in text.splitlines()
    assert {config["training"][key] for key in ("eval_steps", "save_steps")} == {0.1}  # 100 of 6 steps is never
    assert max(map(len, text.splitlines())) <= 125
    wide = as_yaml(plan, "owner/model", "내 행.jsonl", Path("나의 설정.yaml"))
    assert {cell_len(line.split("  # ")[0]) for line in wide.splitlines() if line.startswith("  ")} == {42}
    long = as_yaml(plan, "o" * 80, "rows: 1 # no comment.jsonl", Path("x.yaml"))
    assert yaml.safe_load(long)["model"]["name_or_path"] == "o" * 80
    assert yaml.safe_load(long)["data"]["train"] == "rows: 1 # no comment.jsonl"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Peak learning rate.", "Peak learning rate"),
        ("Stop. Then go.", "Stop"),
        ("Rows: " + "a, " * 40 + "b.", "Rows"),
        ("Steps (" + "x" * 90 + ").", "Steps"),
    ],
)
def test_a_comment_is_short(text, expected):
    assert first_sentence(text) == expected
