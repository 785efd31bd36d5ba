"""argparse's words in Korean; each pattern is matched by what this Python's argparse says."""

from __future__ import annotations

import re

import pytest
from lora_train.trainer.cli import main

ENGLISH = re.compile(r"required|unrecognized|invalid|choose|expected|argument|usage|options|positional|show ")


@pytest.mark.parametrize("lang", ["en", "ko"])
@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["merge"], "RUN"),
        (["env", "RUN"], "RUN"),
        (["completion", "tcsh"], "tcsh"),
        (["export", "RUN", "--to"], "--to"),
        (["replay", "RUN", "--step", "x"], "x"),
    ],
)
def test_errors_are_in_the_users_language(monkeypatch, capsys, lang, arguments, names):
    monkeypatch.setenv("LORA_TRAIN_LANG", lang)
    assert main(arguments) == 2
    first = capsys.readouterr().err.splitlines()[0]
    assert names in first
    assert bool(ENGLISH.search(first)) is (lang == "en"), first


@pytest.mark.parametrize("arguments", [["merge", "--help"], ["help", "merge"], ["--help"]])
def test_headings_are_in_the_users_language(monkeypatch, capsys, arguments):
    monkeypatch.setenv("LORA_TRAIN_LANG", "ko")
    if arguments[0] == "help":
        assert main(arguments) == 0
    else:
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith("사용법: lora-train ")
    assert "\n옵션:\n" in out
    assert not re.search(r"^(usage|options|positional arguments)", out, re.MULTILINE)
    assert "show this help message" not in out
