"""Points that come while a page is open: the page then holds what a page made anew holds, and nobody loses a place."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from lora_train.instrument.judge.explain import read_history
from lora_train.instrument.show.report import write_report
from lora_train.instrument.show.report.data import report_data

from ....conftest import ROOT
from ...conftest import wait_until

RUNS = ROOT / "tests" / "runs"
BEGUN = 45
TWICE = 2 * 5e-7
"""A number of the page has 7 digits, and so had the sum that it goes on from."""
HELD = "({ axes: DATA.axes, steps: DATA.steps, evals: DATA.evals })"
PLACE = """({ scroll: scrollY, zoom: ZOOM, focus: document.activeElement.id,
  open: document.querySelector("#words-note").open, table: document.querySelectorAll("#loss tbody tr").length > 0,
  bin: STATE.bin, hidden: CHARTS[0].plot.series.map((one) => one.show), log: CHARTS[0].plot.scales.y.distr })"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return shutil.copytree(RUNS / "overfitting", tmp_path / "overfitting")


def begun(run: Path, n: int) -> list[dict[str, Any]]:
    """Cuts a run off after n lines; returns the lines behind."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join(lines[:n]) + "\n")
    return [json.loads(line) for line in lines[n:]]


def page_of(opened: Any, run: Path, **options: Any) -> Any:
    page = opened(write_report(run, following=True), **options).page
    page.wait_for_selector("#loss canvas")
    return page


def test_appended_lines_give_what_a_page_made_anew_holds(opened, run):
    whole = report_data(read_history(run))
    rest = begun(run, BEGUN)
    page = page_of(opened, run)
    steps = [row for row in rest if "train_runtime" not in row]
    for at in range(0, len(steps), 7):
        assert page.evaluate("(rows) => loraTrain.append(rows)", steps[at : at + 7])
    held = page.evaluate(HELD)
    assert held["axes"].keys() == whole["axes"].keys()
    for name, axis in held["axes"].items():
        for which in ("steps", "evals"):
            assert axis[which] == pytest.approx(whole["axes"][name][which], rel=TWICE), name
    for part in ("steps", "evals"):
        assert held[part].keys() == whole[part].keys()
        for name, values in held[part].items():
            assert values == pytest.approx(whole[part][name], rel=TWICE), name
    assert page.evaluate("CHARTS[0].plot.data[0].length") == len(whole["steps"]["step"])
    assert page.inner_text(".status .state").startswith(f"Running, step {whole['steps']['step'][-1]}")


@pytest.mark.parametrize(
    "line",
    [
        {"loss": None}, {"skipped": True}, {"step": 3}, {"train_runtime": 3.0}, {"step": None},
    ],
    ids=["lost", "skipped", "again", "end", "nothing"],
)  # fmt: skip
def test_a_line_that_no_point_can_show_is_not_drawn(opened, run, line):
    rest = begun(run, BEGUN)
    page = page_of(opened, run)
    before = page.evaluate(HELD)
    assert page.evaluate("(rows) => loraTrain.append(rows)", [{**rest[0], **line}, rest[1]]) is False
    assert page.evaluate(HELD) == before


def test_a_second_line_of_the_last_step_says_more_of_it(opened, run):
    """A Trainer's log comes after the step: its line is written again, with what was measured besides."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [{**row, "rewards/margins": row["step"] / 2} if "loss" in row else row for row in lines[:BEGUN]]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = page_of(opened, run)
    (first, *_) = [row for row in lines[BEGUN:] if "loss" in row]
    assert page.evaluate("(rows) => loraTrain.append(rows)", [first])
    assert page.evaluate("DATA.steps['rewards/margins'].at(-1)") is None
    before = page.evaluate(HELD)
    assert page.evaluate("(rows) => loraTrain.append(rows)", [{"rewards/margins": 7.5, **first}])
    after = page.evaluate(HELD)
    assert after["steps"]["rewards/margins"].pop() == 7.5
    assert before["steps"]["rewards/margins"].pop() is None
    assert after == before
    assert page.evaluate("(rows) => loraTrain.append(rows)", [first])  # the page was made while it was written
    # the step was run again: another loss
    assert page.evaluate("(rows) => loraTrain.append(rows)", [{**first, "loss": first["loss"] + 1}]) is False


def test_the_first_step_and_the_first_evaluation_ask_for_the_page_anew(opened, run):
    rest = begun(run, 0)
    page = opened(write_report(run, following=True)).page
    assert page.evaluate("(rows) => loraTrain.append(rows)", rest[:1]) is False
    (run / "metrics.jsonl").write_text(json.dumps(rest[0]) + "\n")
    page.evaluate("(data) => loraTrain.update(data)", report_data(read_history(run), following=True))
    page.wait_for_selector("#loss canvas")
    steps = [row for row in rest[1:12] if "eval_loss" not in row]
    (evaluation, *_) = [row for row in rest if "eval_loss" in row]
    assert page.evaluate("(rows) => loraTrain.append(rows)", [*steps, evaluation]) is False
    assert page.evaluate("STEPS.length") == 1 + len(steps)


def test_zoom_scroll_focus_and_what_is_open_stay(opened, run):
    whole = report_data(read_history(run), following=True)
    rest = begun(run, BEGUN)
    page = page_of(opened, run)
    page.click("#loss [data-act=zoom]")
    page.click("#loss [data-act=log]")
    page.click("#loss [data-act=table]")
    page.click("#loss .key >> nth=1")
    page.click("#words-note summary")
    page.locator("#bin").fill("5")
    page.focus("#filter")
    page.evaluate("scrollTo(0, 400)")
    before = page.evaluate(PLACE)
    assert (before["table"], before["open"], before["hidden"], before["log"]) == (True, True, [True, True, False], 3)
    page.evaluate("(rows) => loraTrain.append(rows)", rest[:9])
    assert page.evaluate(PLACE) == before
    page.evaluate("(data) => loraTrain.update(data)", {k: v for k, v in whole.items() if k not in ("text", "layers")})
    after = page.evaluate(PLACE)
    assert {**after, "scroll": None} == {**before, "scroll": None}
    assert after["scroll"] == pytest.approx(before["scroll"], abs=5)
    assert page.evaluate("STEPS.length") == len(whole["steps"]["step"])
    page.click("#lang-ko")
    page.evaluate("scrollTo(0, 400)")
    wait_until(page, "document.documentElement.lang === 'ko'")
    assert {**page.evaluate(PLACE), "focus": ""} == {**before, "focus": "", "scroll": 400}


def test_nothing_is_taken_away_while_it_is_held(opened, run):
    whole = report_data(read_history(run), following=True)
    begun(run, BEGUN)
    page = page_of(opened, run)
    before = page.evaluate("STEPS.length")
    page.evaluate("document.getElementById('smoothing').held = true")
    page.locator("#smoothing").hover()
    page.mouse.down()
    page.evaluate("(data) => loraTrain.update(data)", whole)
    assert page.evaluate("document.getElementById('smoothing').held")
    assert page.evaluate("STEPS.length") == before
    page.mouse.up()
    wait_until(page, f"STEPS.length === {len(whole['steps']['step'])}")


def test_what_is_typed_meanwhile_stays_in_order(opened, run):
    whole = report_data(read_history(run), following=True)
    page = page_of(opened, run)
    page.focus("#filter")
    for letter in "q_proj":
        page.keyboard.type(letter)
        page.evaluate("(data) => loraTrain.update(data)", {"tiles": whole["tiles"]})
    assert page.input_value("#filter") == "q_proj"
    assert page.evaluate("new Set(shown.columns).size") == 1


def test_the_grid_goes_on_at_the_last_step_where_it_was_there(opened, run):
    whole = report_data(read_history(run), following=True)
    begun(run, BEGUN)
    page = page_of(opened, run)
    last = page.evaluate("GRID.bins.length - 1")
    assert page.evaluate("STATE.bin") == last
    page.evaluate("(data) => loraTrain.update(data)", whole)
    assert page.evaluate("STATE.bin") == len(whole["layers"]["bins"]) - 1 > last
