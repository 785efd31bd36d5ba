from __future__ import annotations

import pytest
import yaml
from lora_train.trainer.errors import UserError
from lora_train.trainer.importer.recognize import read_foreign, tool_of

from ...conftest import ROOT


@pytest.mark.parametrize(
    ("keys", "tool"),
    [
        ({"base_model": "m", "datasets": [], "adapter": "lora"}, "axolotl"),
        ({"base_model": "m", "lora_r": 8}, "axolotl"),
        ({"model_name_or_path": "m", "stage": "sft", "finetuning_type": "lora"}, "LLaMA-Factory"),
        ({"model_name_or_path": "m", "template": "qwen", "cutoff_len": 128}, "LLaMA-Factory"),
        ({"model": "m", "peft_config": {"name": "lora"}}, "LLaMA-Factory"),
        ({"peft_type": "LORA", "r": 8}, "PEFT"),
        ({"model_name_or_path": "m", "use_peft": True, "dataset_name": "d"}, "TRL"),
        ({"max_length": 128, "learning_rate": 1e-4}, "TRL"),
        ({"output_dir": "o", "learning_rate": 1e-4}, "TrainingArguments"),
        ({"output_dir": "o", "do_train": True}, "TrainingArguments"),
        ({"model": {"name_or_path": "m"}, "learning_rate": 1, "output_dir": "x"}, None),
        ({"training": {}, "base_model": "m", "adapter": "lora"}, None),
        ({"log_history": [], "max_steps": 5, "save_steps": 1, "logging_steps": 1}, None),
        ({"trainig": {}, "modle": {}}, None),
        ({"learning_rate": 1e-4}, None),
        ({"a": 1}, None),
        ({}, None),
    ],
)
def test_whose_keys_they_are(keys, tool):
    assert tool_of(keys) == tool


@pytest.mark.parametrize("name", ["koalpaca.yaml", "examples/koalpaca-mini.yaml"])
def test_ours_is_ours(name):
    assert tool_of(yaml.safe_load((ROOT / name).read_text())) is None
    with pytest.raises(UserError, match="is a configuration of lora-train already"):
        read_foreign(ROOT / name)


def test_what_is_nobodys_is_said(tmp_path):
    (tmp_path / "c.yaml").write_text("a: 1\n")
    (tmp_path / "c.py").write_text("print(1)\n")
    with pytest.raises(UserError, match="no configuration that lora-train knows"):
        read_foreign(tmp_path / "c.yaml")
    with pytest.raises(UserError, match="calls nothing that makes or trains an adapter"):
        read_foreign(tmp_path / "c.py")
