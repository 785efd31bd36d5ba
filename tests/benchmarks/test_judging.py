"""The table of judgements: its cells, its bars, and a part of it counted."""

from __future__ import annotations

import numpy as np
import pytest
from lora_train.instrument.judge.course import CRITICAL_ALIKE

from benchmarks.judging import __main__ as judging
from benchmarks.judging import bounds, draw
from benchmarks.judging.__main__ import CRITICAL, SEEDS, Rate, count, critical, main, quick
from benchmarks.judging.cells import FALSE, FOUND, PARTS, Cell, cells
from benchmarks.judging.summary import summary

FEW = 4
EVERY = cells()


def rate(said: int, of: int, bar: float, *, found: bool) -> Rate:
    return Rate(Cell("eval", "x", 5, lambda random: [], frozenset(), bar, found=found), said, of)


def test_a_bar_is_held_as_it_stands_with_all_seeds():
    assert rate(10, SEEDS, FALSE, found=False).passes
    assert not rate(11, SEEDS, FALSE, found=False).passes
    assert rate(190, SEEDS, FOUND, found=True).passes
    assert not rate(189, SEEDS, FOUND, found=True).passes


def test_with_few_seeds_chance_is_allowed_for_and_no_more():
    # of 10 seeds at 1 in 20 more than 3 are false in one of 970 cells, more than 2 in one of 87
    assert rate(3, 10, FALSE, found=False).passes
    assert not rate(4, 10, FALSE, found=False).passes
    assert rate(7, 10, FOUND, found=True).passes
    assert not rate(6, 10, FOUND, found=True).passes


def test_every_part_has_cells_of_both_kinds_and_their_sentences_exist():
    from lora_train.instrument.messages import catalogue

    assert {(cell.part, cell.found) for cell in EVERY} == {(part, found) for part in PARTS for found in (True, False)}
    assert {key for cell in EVERY for key in cell.keys if f"explain.{key}" not in catalogue("en")} == set()


@pytest.mark.parametrize("place", quick()[::6], ids=lambda place: f"{EVERY[place].name}-{EVERY[place].n}")
def test_a_part_of_the_table_holds_its_bars(place):
    cell = EVERY[place]
    assert Rate(cell, count(cell, FEW), FEW).passes


def test_a_table_is_printed(capsys):
    assert main(["--part", "rows", "--seeds", "3", "--workers", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines[:2]] == ["PASS", "PASS"]
    assert lines[-1].startswith("2 cells, 0 short")


def test_noise_is_drawn_with_a_standard_deviation_of_one():
    """The error of a standard deviation of 20,000 outlier-laden values is 3%."""
    for kind in draw.NOISES:
        if kind != "Student t3":  # its fourth moment does not exist
            assert np.std(draw.noise(kind, 20_000, np.random.default_rng(0))) == pytest.approx(1, abs=0.1)
    assert draw.expected_maximum(1, 0.0) == pytest.approx(1)
    # the mean of the largest of 50 normal values is 2.249; of its exponential at 0.3 a little above exp(0.675)
    assert np.log(draw.expected_maximum(50, 0.3)) == pytest.approx(0.3 * 2.249, abs=0.03)


def test_the_best_test_of_a_spike_by_hand():
    # G above 2.956 of 50 is Grubbs' table at 1 in 20; a spike of 12 deviations is found by any
    assert bounds.spike(50, 0.1, 3.0, draws=2000) == 1.0
    # three times the largest of 50 at 0.9 is 3.58 deviations above: a third of that is lost in the scatter of s
    assert 0.70 < bounds.spike(50, 0.9, 3.0, draws=4000) < 0.86
    assert bounds.spike(50, 0.9, 1.0, draws=4000) < bounds.spike(50, 0.9, 3.0, draws=4000)


def test_a_bar_beyond_the_best_test_is_printed_as_short_and_asked_for_by_its_share():
    cell = Cell("grad_norm", "x", 50, lambda random: [], frozenset(), FOUND, found=True, best=lambda: 0.78)
    near, far, held = Rate(cell, 140, SEEDS), Rate(cell, 100, SEEDS), Rate(cell, 195, SEEDS)
    assert (near.passes, near.short, far.short, held.short) == (False, False, True, False)
    assert near.line().endswith("SHORT best test 78%")
    assert held.line().endswith("PASS")
    easy = Cell("grad_norm", "x", 50, lambda random: [], frozenset(), FOUND, found=True, best=lambda: 0.99)
    assert Rate(easy, 180, SEEDS).short
    assert Rate(easy, 180, SEEDS).line().endswith("SHORT")


def test_critical_values_are_drawn(monkeypatch):
    monkeypatch.setattr(judging, "CRITICAL", {4: 0.0, 6: 0.0, 40: 0.0})
    drawn = critical(200)
    # what is assumed of fewer than six values is not drawn; the others are those of course.py within their scatter
    assert list(drawn) == [6, 40]
    assert drawn[6] == pytest.approx(CRITICAL[6], abs=0.6)
    assert drawn[40] == pytest.approx(CRITICAL[40], abs=0.6)
    monkeypatch.setattr(judging, "CRITICAL_ALIKE", {20: 0.0, 40: 0.0})
    alike = critical(200, alike=True)
    assert list(alike) == [20, 40]
    assert alike[20] == pytest.approx(CRITICAL_ALIKE[20], abs=0.4)
    assert alike[40] < drawn[40]


def test_a_summary_names_the_worst_cell_of_a_question():
    def cell(noise: str, n: int) -> Cell:
        return Cell("eval", f"constant, {noise}", n, lambda random: [], frozenset(), FALSE)

    rates = [Rate(cell("Gaussian", 5), 2, SEEDS), Rate(cell("2 decimals", 40), 12, SEEDS)]
    other = Rate(Cell("eval", "step", 12, lambda random: [], frozenset(), FOUND, found=True), 199, SEEDS)
    lines = summary([*rates, other])[2:]
    assert lines[0] == (
        "| eval | constant | 5 to 40 | 2 | false, at most 5% | 6.0% (of 40) | 3.5% | constant, 2 decimals at 40 |"
    )
    assert lines[1] == "| eval | step | 12 | 1 | found, at least 95% | 99.5% (of 12) | 99.5% | none |"
