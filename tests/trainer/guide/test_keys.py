"""What --help says of keys, in both languages."""

from __future__ import annotations

import re

import pytest
import yaml
from lora_train.trainer.checks.unknown_keys import PEER_NAMES
from lora_train.trainer.cli import main
from lora_train.trainer.config.reference import keys
from lora_train.trainer.config.schema import Config, sections
from lora_train.trainer.guide.keys import FIRST, describe_key, describe_keys, examples_of, name_of
from rich.cells import cell_len

KEYS = {key.name: key for key in keys()}


@pytest.mark.parametrize(
    ("lang", "lines"),
    [
        ("en", ["r                            Rank of the adapter. (default 8)", "(required)"]),
        ("ko", ["r                            어댑터의 rank. (기본값 8)", "(필수)"]),
    ],
)
def test_help_is_in_the_users_language(monkeypatch, lang, lines):
    monkeypatch.setenv("LORA_TRAIN_LANG", lang)
    text = describe_keys(None)
    assert all(line in text for line in lines)
    assert re.findall(r"^(\w+):$", text, re.M) == list(sections())
    assert sum(line.startswith("  ") for line in text.splitlines()) == len(KEYS) + len(FIRST)
    positions = [text.index(f"  {name}") for name in FIRST]
    assert positions == sorted(positions)
    assert positions[-1] < text.index("\nmodel:")


@pytest.mark.parametrize("columns", [40, 80, 120])
@pytest.mark.parametrize("lang", ["en", "ko"])
def test_on_a_terminal_no_line_is_wider_and_none_goes_on_at_the_left(monkeypatch, lang, columns):
    monkeypatch.setenv("LORA_TRAIN_LANG", lang)
    lines = describe_keys(columns).splitlines()
    longest_words = [max(map(cell_len, line.split()), default=0) for line in lines]
    assert all(
        cell_len(line) <= max(columns, columns // 4 + word) for line, word in zip(lines, longest_words, strict=True)
    )
    assert " ".join(lines).split() == describe_keys(None).split()


@pytest.mark.parametrize("name", KEYS)
def test_every_example_is_a_value_that_the_key_takes(name):
    """As YAML, in a configuration that is valid but for what it is."""
    section, _, key = name.partition(".")
    schema = sections()[section]
    required = {"model": {"name_or_path": "owner/model"}, "data": {"train": "owner/rows"}}.get(section, {})
    for example in examples_of(KEYS[name]):
        schema.model_validate({**required, key: yaml.safe_load(f"x: {example}")["x"]})


def test_one_key_says_all_that_is_known_of_it(capsys):
    assert main(["help", "training.learning_rate"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("training.learning_rate   (number; default 5e-05)\n  Peak learning rate.\n")
    assert "    training:\n      learning_rate: 1e-4\n" in out
    assert "    lora-train --config FILE training.learning_rate=1e-4\n" in out
    assert re.search(r"elsewhere called +lr\n", out)
    for asked in (
        ["--help", "training.learning_rate"],
        ["-h", "learning_rate"],
        ["help", "--learning-rate"],
        ["help", "lr"],
    ):
        argv = asked if asked[1][:2] != "--" else ["help", "--", asked[1]]
        assert main(argv) == 0
        assert capsys.readouterr().out == out


def test_help_speaks_the_language_that_is_asked_for(capsys, monkeypatch):
    monkeypatch.setenv("LORA_TRAIN_LANG", "en")
    assert main(["help", "lora.r", "--lang", "ko"]) == 0
    out = capsys.readouterr().out
    assert "어댑터의 rank" in out
    assert "기본값 8" in out
    assert "파일에서" in out


def test_a_section_lists_its_keys(capsys):
    assert main(["help", "lora"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in out] == [name for name in KEYS if name.startswith("lora.")]


def test_verbs_and_everything(capsys):
    assert main(["help", "merge"]) == 0
    assert capsys.readouterr().out.startswith("usage: lora-train merge [-h]")
    assert main(["help"]) == 0
    everything = capsys.readouterr().out
    assert main(["help", "train"]) == 0
    assert capsys.readouterr().out == everything
    assert everything.startswith("usage: lora-train [-h] --config FILE")


def test_what_is_nothing_gets_the_nearest_once(capsys):
    assert main(["help", "lerning_rate"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(
        "error: lerning_rate is neither a verb nor a key\nhint: did you mean training.learning_rate"
    )
    assert error.count("\n") == 2
    assert main(["help", "xyzzy"]) == 2
    assert "`lora-train help` lists all" in capsys.readouterr().err


def test_names_of_other_trainers_lead_to_ours():
    for peer, ours in PEER_NAMES.items():
        if peer not in {name.partition(".")[2] for name in KEYS}:
            assert name_of(peer) == ours
    assert set(FIRST) <= set(KEYS)
    assert set(Config.model_fields) == {name.partition(".")[0] for name in KEYS}
    assert describe_key("lr", None) == describe_key("training.learning_rate", None)
