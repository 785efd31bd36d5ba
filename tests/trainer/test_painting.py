"""Verdicts in colour, lines broken under their own beginning; pipes as before."""

from __future__ import annotations

import re

import pytest
from lora_train.trainer import painting
from lora_train.trainer.cli import main
from rich.cells import cell_len

from ..conftest import ROOT

STOCK = ROOT / "tests" / "runs" / "stock"
ESCAPE = re.compile(r"\x1b\[[\d;]*m")


@pytest.fixture(autouse=True)
def no_wish(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)


def explained(capsys, lang: str) -> str:
    assert main(["explain", str(STOCK), "--lang", lang]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_colour_adds_nothing_but_colour(capsys, monkeypatch, lang):
    plain = explained(capsys, lang)
    assert not ESCAPE.search(plain)
    monkeypatch.setenv("FORCE_COLOR", "1")
    coloured = explained(capsys, lang)
    assert ESCAPE.sub("", coloured) == plain
    wrong = {"en": "WRONG", "ko": "이상"}[lang]

    assert f"\x1b[1;31m{wrong}\x1b[0m" in coloured
    assert "\x1b[1mloss\x1b[0m" in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    assert explained(capsys, lang) == plain


@pytest.mark.parametrize("lang", ["en", "ko"])
@pytest.mark.parametrize("columns", [40, 80])
def test_a_terminal_gets_lines_that_fit(capsys, monkeypatch, lang, columns):
    plain = explained(capsys, lang)
    monkeypatch.setattr(painting, "width", lambda: columns)
    narrow = explained(capsys, lang)
    assert narrow.split() == plain.split()
    for line in narrow.splitlines():
        longest_word = max(map(cell_len, line.split()), default=0)
        assert cell_len(line) <= max(columns, columns // 2 + longest_word)


def test_lines_go_on_under_their_text():
    line = "  WRONG     From step 13 on every pass was NaN."
    assert painting.wrapped(line, 32).splitlines() == [
        "  WRONG     From step 13 on",
        "            every pass was NaN.",
    ]
    assert painting.wrapped("a sentence that is too long", 16).splitlines() == ["a sentence that", "is too long"]
    table = "name    1.23    4.56    another column that is long"
    assert painting.wrapped(table, 30) == table
    assert painting.wrapped(line, None) == line


@pytest.mark.parametrize(
    ("environment", "terminal", "expected"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"FORCE_COLOR": "1"}, False, True),
        ({"NO_COLOR": "1"}, True, False),
        ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, True, False),
        ({"NO_COLOR": ""}, True, True),
        ({"TERM": "dumb"}, True, False),
    ],
)
def test_who_wants_colour(monkeypatch, environment, terminal, expected):
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal, raising=False)
    assert painting.has_colour() is expected
