"""The schema of a study file knows the keys that the reader knows, and the examples are read by both."""

from __future__ import annotations

import pytest
import yaml
from lora_train.trainer.config.reference import keys
from lora_train.trainer.sweep.reading import json_schema
from lora_train.trainer.sweep.study_file import KEYS, SAMPLERS, read_study_file

from ...conftest import ROOT


def test_the_schema_has_the_keys_of_a_study():
    properties = json_schema()["properties"]
    assert set(properties) == set(KEYS)
    assert properties["sampler"]["enum"] == list(SAMPLERS)
    assert properties["nuisance"]["propertyNames"]["enum"] == [key.name for key in keys()]


@pytest.mark.parametrize(("name", "trials"), [("study.yaml", 6), ("study-sentiment.yaml", 12)])
def test_the_examples_are_studies(name, trials, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    values = yaml.safe_load((ROOT / "examples" / name).read_text(encoding="utf-8"))
    assert set(values) <= set(json_schema()["properties"])
    base = yaml.safe_load((ROOT / "examples" / values["base"]).read_text(encoding="utf-8"))
    base["model"]["name_or_path"] = "owner/model"  # the real ones are fetched by whoever runs the examples
    (tmp_path / name).write_text(yaml.safe_dump(values | {"base": base}))
    study = read_study_file(tmp_path / name)
    assert study.trials * study.seeds == trials
