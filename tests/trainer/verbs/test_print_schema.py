from __future__ import annotations

import json

import pytest
from lora_train.trainer.cli import main
from lora_train.trainer.config.reference import json_schema


def test_it_prints_the_schema_whatever_the_language(capsys, monkeypatch):
    printed = []
    for lang in ("en", "ko"):
        monkeypatch.setenv("LORA_TRAIN_LANG", lang)
        assert main(["schema"]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert json.loads(printed[0]) == json_schema()


def test_it_writes_a_file_and_says_how_the_yaml_names_it(capsys, tmp_path):
    path = tmp_path / "config.schema.json"
    assert main(["schema", "-o", str(path)]) == 0
    assert json.loads(path.read_text(encoding="utf-8")) == json_schema()
    assert f"# yaml-language-server: $schema={path}" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["", "missing/config.schema.json"])
def test_a_file_that_cannot_be_written_is_an_error_with_a_hint(capsys, tmp_path, name):
    assert main(["schema", "-o", str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / name} cannot be written: ")
    assert "\nhint: " in error
    assert list(tmp_path.iterdir()) == []
