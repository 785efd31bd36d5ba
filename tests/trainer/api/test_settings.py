"""A configuration from a file or a dict, with keywords that win over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from lora_train.trainer.api.settings import settings
from lora_train.trainer.errors import UserError

BASE: dict[str, Any] = {"model": {"name_or_path": "o/m"}, "data": {"train": "o/d", "format": "text"}}


def of(config: Any, **overrides: Any) -> Any:
    told: list[str] = []
    return settings(config, overrides, told.append)


@pytest.mark.parametrize("in_file", [False, True])
def test_every_way_to_say_a_key(tmp_path, in_file):
    given: Any = BASE | {"training": {"learning_rate": 1e-3, "seed": 7}}
    if in_file:
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(given))
        given = tmp_path / "c.yaml"
    assert of(given).training.learning_rate == 1e-3
    assert of(given, learning_rate=1e-5).training.learning_rate == 1e-5
    assert of(given, **{"training.learning_rate": 1e-5}).training.learning_rate == 1e-5
    section = of(given, training={"learning_rate": 1e-5}, seed=8).training
    assert (section.learning_rate, section.seed) == (1e-5, 8)
    assert of(given, r=2, output_dir=tmp_path / "x").training.output_dir == str(tmp_path / "x")
    assert of(given, lora_r=2).lora.r == 2  # a peer's name


def test_keys_in_a_dict_may_be_written_flat():
    flat = {"model.name_or_path": "o/m", "data.train": "o/d", "format": "text", "target_modules": ("q_proj", "v_proj")}
    config = of(flat, bf16=True)
    assert config.model.name_or_path == "o/m"
    assert config.lora.target_modules == ["q_proj", "v_proj"]
    assert config.training.bf16


def test_neither_argument_is_changed():
    inner = {"name_or_path": "o/m"}
    given, more = {"model": inner, "data": {"train": "o/d", "format": "text"}}, {"training": {"seed": 1}}
    of(given, **more, model={"revision": "x"})
    assert (inner, more) == ({"name_or_path": "o/m"}, {"training": {"seed": 1}})


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"learnig_rate": 1}, "learning_rate"),
        ({"training": 3}, "training"),
        ({"lora": {"rnak": 3}}, "a keyword of train(): lora.rnak"),
        ({"learning_rate": "fast"}, "a keyword of train(): training.learning_rate"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(overrides, says):
    with pytest.raises(UserError) as error:
        of(BASE, **overrides)
    assert says in str(error.value)


def test_a_run_folders_own_code_is_not_trusted_silently(tmp_path: Path):
    (tmp_path / "metrics.jsonl").touch()
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({**BASE, "model": {"name_or_path": "o/m", "trust_remote_code": True}}))
    with pytest.raises(UserError, match="trust_remote_code"):
        of(file)
    assert of(file, trust_remote_code=True).model.trust_remote_code


def test_another_tools_file_is_named(tmp_path: Path):
    file = tmp_path / "axolotl.yaml"
    file.write_text("base_model: o/m\nadapter: lora\ndatasets:\n  - path: o/d\n    type: alpaca\n")
    with pytest.raises(UserError, match="lora-train import"):
        of(file)
