"""The rules of advise on studies whose truth is known: each kind, its healthy twin, and half an effect."""

from __future__ import annotations

import numpy as np
import pytest
from lora_train.instrument.advise import VERDICTS
from lora_train.instrument.advise.rules import RULES
from lora_train.instrument.messages import catalogue

from benchmarks.studies import draw
from benchmarks.studies.__main__ import SEEDS, Rate, cells, count, main
from benchmarks.studies.kinds import Cell, kinds

EVERY = cells()
FEW = 2


def rate(right: int, wrong: int, of: int) -> Rate:
    return Rate(EVERY[0], right, wrong, of)


def test_the_bars_are_19_of_20_and_one_of_20():
    assert rate(48, 2, SEEDS).passes
    assert not rate(47, 2, SEEDS).passes
    assert not rate(50, 3, SEEDS).passes
    assert rate(1, 1, FEW).passes  # one of few may be missed
    assert not rate(0, 0, FEW).passes


def test_every_rule_has_a_kind_but_those_that_only_compute():
    asked = {kind.rule for kind in kinds()}
    # P5 looks for files and P8 names the schedule: test_advise.py and test_lengthen.py
    assert RULES.keys() - asked == {"P5", "P8"}
    assert len({kind.name for kind in kinds()}) == len(kinds()) >= 24
    says = {f"advise.{key}" for cell in EVERY for key in cell.says}
    assert says - catalogue("en").keys() == set()


@pytest.mark.parametrize("place", range(len(EVERY)), ids=lambda place: f"{EVERY[place].kind}-{EVERY[place].side}")
def test_a_part_of_the_table_holds_its_bars(place):
    assert Rate(EVERY[place], *_counts(place)).passes


def _counts(place: int) -> tuple:
    found = count(place, FEW, first=7)
    return found.right, found.wrong, found.of, found.said


def test_a_rule_says_one_of_the_verdicts():
    for cell in EVERY[::5]:
        study = cell.make(np.random.default_rng(1), cell.effect)
        assert {advice.verdict for rule in RULES.values() for advice in rule(study)} <= VERDICTS.keys()


def test_a_cell_that_fails_is_told(capsys, monkeypatch):
    wrong = Cell(
        "planted",
        "ill",
        "P3",
        ("p3_vary",),
        lambda random, _: draw.study(draw.grid((0,), 2, values=(1e-4,)), random),
        3,
    )
    monkeypatch.setattr("benchmarks.studies.__main__.cells", lambda: [wrong])
    assert main(["--seeds", "3", "--workers", "1"]) == 1
    line = capsys.readouterr().out.splitlines()[0]
    assert "SHORT" in line
    assert "wrong 100.0%" in line
    assert line.endswith("p3_same 3")
