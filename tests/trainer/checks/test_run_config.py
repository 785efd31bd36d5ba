"""The configuration of a run is read though its data has gone, and refused where it is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from lora_train.trainer.checks.run_config import run_config
from lora_train.trainer.errors import UserError


def test_data_that_has_gone_is_not_looked_for(tmp_path: Path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"model": {"name_or_path": "m"}, "data": {"train": "gone.jsonl"}}), encoding="utf-8")
    assert run_config(path).data.train == "gone.jsonl"


@pytest.mark.parametrize("text", ["model: 3", "{", "lora: {rank: 8}", "[" * 3000 + "]" * 3000])
def test_what_is_no_configuration_is_refused(tmp_path: Path, text: str):
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError):
        run_config(path)
