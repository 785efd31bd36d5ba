"""What is said to people who use another trainer: their keys, and none that nobody has."""

from __future__ import annotations

import re

import pytest
from lora_train.instrument.judge.wording import COLUMNS, KEYS, keys_of
from lora_train.instrument.messages import LANGUAGES, catalogue
from lora_train.trainer.checks.read_config import read_settings
from lora_train.trainer.config.schema import sections

from ...conftest import ROOT

OUR_KEY = re.compile(r"\b(?:" + "|".join(sections()) + r")\.\w+(?:=[\w\[\]-]+(?:\.\d+)?)?", re.ASCII)
HINTS = {
    (lang, key): text
    for lang in LANGUAGES
    for key, text in catalogue(lang).items()
    if key.startswith("explain.") and ".hint" in key
}
OURS_ALONE = {"precision.on_collapse", "precision.fp32_modules", "precision.loss_scale", "data.eval_fraction"}


def named(text: str) -> set[str]:
    return set(OUR_KEY.findall(text))


@pytest.mark.parametrize(("lang", "key"), HINTS, ids=str)
def test_every_key_that_advice_names_is_one_of_the_configuration(lang, key):
    settings = [setting for setting in named(HINTS[lang, key]) if "{" not in setting]
    known = {f"{name}.{field}" for name, section in sections().items() for field in section.model_fields}
    assert {setting.partition("=")[0] for setting in settings} <= known
    with_values = [setting for setting in settings if "=" in setting]
    assert set(read_settings(ROOT / "koalpaca.yaml", with_values)) == {
        setting.partition("=")[0] for setting in with_values
    }


@pytest.mark.parametrize("trainer", COLUMNS)
def test_no_key_of_ours_reaches_people_who_use_another_trainer(trainer):
    left = {}
    for (lang, key), text in HINTS.items():
        if key.endswith(".hint") and f"{key}_stock" in catalogue(lang):
            continue
        found = {setting.partition("=")[0] for setting in named(keys_of(trainer, text))}
        if found - OURS_ALONE:
            left[lang, key] = found - OURS_ALONE
    assert left == {}


def test_settings_are_written_as_the_trainer_has_them():
    advice = "training.load_best_model_at_end=true keeps it; data.cutoff_len, lora.r. training.num_train_epochs"
    assert keys_of("lora-train", advice) == advice
    assert keys_of("trl", advice) == "load_best_model_at_end=true keeps it; max_length, r. num_train_epochs"
    assert keys_of("axolotl", advice) == "load_best_model_at_end: true keeps it; sequence_len, lora_r. num_epochs"
    assert keys_of("llamafactory", "data.eval_fraction=0.02") == "val_size: 0.02"
    assert all(len(columns) == len(COLUMNS) for columns in KEYS.values())
