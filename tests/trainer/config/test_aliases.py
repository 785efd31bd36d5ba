from __future__ import annotations

import pytest
import yaml
from lora_train.trainer.checks.read_config import read_config
from lora_train.trainer.config.aliases import ATTENTION, DTYPES, NEAR_OPTIMIZERS, OPTIMIZERS, SCHEDULES, ours_for
from lora_train.trainer.config.schema import sections

from ...conftest import DATA

MINIMAL = {"model": {"name_or_path": "owner/model"}, "data": {"train": str(DATA)}}


def words(section: str, key: str) -> set[str]:
    return set(sections()[section].model_fields[key].annotation.__args__)  # pyright: ignore


def test_every_alias_leads_to_a_word_and_hides_none():
    for aliases, known in (
        (OPTIMIZERS | NEAR_OPTIMIZERS, words("training", "optim")),
        (SCHEDULES, words("training", "lr_scheduler_type")),
        (DTYPES, words("model", "dtype")),
        (ATTENTION, words("model", "attn_implementation")),
    ):
        assert set(aliases.values()) <= known
        assert not aliases.keys() & known


@pytest.mark.parametrize(
    ("section", "key", "value", "expected"),
    [
        ("training", "optim", "adamw", "adamw_torch_fused"),
        ("training", "optim", "adamw_torch", "adamw_torch"),
        ("training", "optim", "adamw_hf", "adamw_torch"),
        ("training", "optim", "adamw_8bit", "adamw_8bit"),
        ("training", "optim", "adamw_bnb_8bit", "adamw_8bit"),
        ("training", "optim", "paged_adamw_8bit", "paged_adamw_8bit"),
        ("training", "optim", "paged_adamw", "paged_adamw_32bit"),
        ("training", "lr_scheduler_type", "cosine_with_warmup", "cosine"),
        ("training", "bf16", "auto", True),
        ("training", "fp16", True, True),
        ("model", "dtype", "torch.float32", "float32"),
        ("model", "torch_dtype", "fp32", "float32"),
        ("model", "attn_implementation", "fa2", "flash_attention_2"),
    ],
)
def test_words_that_people_write(tmp_path, section, key, value, expected):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, section: {**MINIMAL.get(section, {}), key: value}}))
    told: list[str] = []
    found = getattr(read_config(path, (), told.append), section)
    assert getattr(found, "dtype" if key == "torch_dtype" else key) == expected
    assert any("bf16: auto" in sentence for sentence in told) == (value == "auto")


def test_what_is_no_alias_stays():
    assert ours_for("training.optim", "sgd") == "sgd"
    assert ours_for("training.optim", ["adamw"]) == ["adamw"]
    assert ours_for("training.seed", "adamw") == "adamw"
