from __future__ import annotations

import json
import re
import string

import pytest
from lora_train.instrument.judge.explain.finding import TOPICS, VERDICTS
from lora_train.instrument.messages import LANGUAGES, catalogue, language, say, say_in
from lora_train.trainer.collapse.screen import REMEDIES
from lora_train.trainer.config.schema import sections

from ..conftest import ROOT
from .sentences import Asked, asked_by, faults, words


def placeholders(sentence: str) -> set[tuple[str, bool]]:
    """Each with whether it is a number: text has no format."""
    return {(name, bool(spec)) for _, name, spec, _ in string.Formatter().parse(sentence) if name}


def test_both_languages_have_the_same_keys_and_placeholders():
    english, korean = catalogue("en"), catalogue("ko")
    assert english.keys() == korean.keys()
    different = {key for key in english if placeholders(english[key]) != placeholders(korean[key])}
    assert different == set()


@pytest.mark.parametrize("lang", LANGUAGES)
def test_no_key_stands_twice(lang):
    """The reader would keep the second one, and another sentence would be said."""
    text = (ROOT / "instrument" / "catalogue" / f"{lang}.json").read_text(encoding="utf-8")
    names = [name for name, _ in json.loads(text, object_pairs_hook=list)]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize(
    ("value", "written"),
    [(129.6, "130"), (12_345.0, "12,000"), (1.5, "1.5"), (2.5e7, "2.5e+07"), (float("inf"), "inf")],
)
def test_numbers_are_written_as_people_write_them(value, written):
    assert f"±{written}% is assumed" in say_in("en", "advise.noise_assumed", percent=value)


CONFIG_KEYS = {f"{name}.{key}" for name, section in sections().items() for key in section.model_fields}
ASKED = asked_by(ROOT)
FAMILIES = sorted({re.sub(r"\.hint(_stock)?$", "", key).rpartition(".")[0] for key in catalogue("en")})


def test_every_sentence_is_asked_for_and_every_key_has_a_sentence():
    assert list(faults(ASKED, catalogue("en"), CONFIG_KEYS)) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_a_dead_sentence_and_a_missing_one_are_found_in_every_family(family):
    sentences = catalogue("en")
    own = [key for key in sentences if key.rpartition(".")[0] == family and not key.endswith((".hint", ".hint_stock"))]
    for key in own:
        renamed = {f"{name}_renamed" if name == key else name: text for name, text in sentences.items()}
        found = set(faults(ASKED, renamed, CONFIG_KEYS))
        assert found >= {f"missing: {key}", f"dead: {key}_renamed"}
    planted = {**sentences, f"{family}.planted": "", f"{own[0]}_planted": "", f"{own[0]}_planted.hint": ""}
    assert set(faults(ASKED, planted, CONFIG_KEYS)) == {f"dead: {key}" for key in planted.keys() - sentences.keys()}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('say("data.planted")', ["missing: data.planted"]),
        ('say("data.empty" if x else "data.planted", n=1)', ["missing: data.planted"]),
        ('BadRow(("data.planted", {}))', ["missing: data.planted"]),
        ('"""data.planted"""', []),
        ('Path("data.yaml"), config["data.train"], f"data.{x}"', []),
        ('say(f"collapse.title.{kind}")', ["composed: planted.py:1"]),
        ('Finding("loss", "note", "explain." + key)', ["composed: planted.py:1"]),
    ],
)
def test_what_counts_as_asking(source, expected):
    asked = Asked().python(source)
    asked.keys.update(ASKED.keys)
    assert list(faults(asked, catalogue("en"), CONFIG_KEYS)) == expected


def test_a_hint_of_a_sentence_that_is_only_said_is_dead():
    sentences = {"data.one": "", "data.one.hint": "", "data.two": "", "data.two.hint": ""}
    asked = Asked().python('say("data.one"), problem("data.two"), say("data.two")')
    assert list(faults(asked, sentences, ())) == ["dead: data.one.hint, its sentence is only said"]


@pytest.mark.parametrize("source", ['t("report.metric." + name)', "t(`report.${name}`)", 't(prefix + "x")'])
def test_a_page_puts_no_key_together(source):
    assert len(Asked().script(source).composed) == 1


def test_a_page_asks_by_whole_keys():
    assert Asked().script('t("report.loss"); t(NAMES[x]); const NAMES = {x: "report.x"}').keys == {
        "report.loss": 1, "report.x": 1
    }  # fmt: skip


def test_tables_have_a_sentence_for_every_word():
    """A remedy, a topic or a verdict without one would be a KeyError on the screen."""
    assert words(ROOT, "trainer/collapse", "Remedy", 0) == set(REMEDIES)
    assert words(ROOT, "instrument/judge/explain", "Finding", 0) == set(TOPICS)
    assert words(ROOT, "instrument/judge/explain", "Finding", 1) == set(VERDICTS)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"LORA_TRAIN_LANG": "ko", "LANG": "en_US.UTF-8"}, "ko"),
        ({"LANG": "ko_KR.UTF-8"}, "ko"),
        ({"LC_ALL": "C.UTF-8", "LANG": "ko_KR.UTF-8"}, "en"),
        ({}, "en"),
    ],
)
def test_language_of_the_user(monkeypatch, variables, expected):
    for name in ("LORA_TRAIN_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert language() == expected


def test_say_fills_in_the_users_language(monkeypatch):
    assert say("data.empty", source="x.jsonl") == "x.jsonl holds no rows"
    monkeypatch.setenv("LORA_TRAIN_LANG", "ko")
    assert say("data.empty", source="x.jsonl") == "x.jsonl: 행이 하나도 없습니다"
