"""Every page for those who do not see it or have no mouse: axe-core finds nothing, keys reach and move everything."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lora_train.instrument.advise.page import write_study_page
from lora_train.instrument.judge.explain import read_history
from lora_train.instrument.judge.row_score import Texts
from lora_train.instrument.read.eval_rows import Confusion
from lora_train.instrument.show.compare import compare_runs, write_comparison
from lora_train.instrument.show.report import write_report

from ....conftest import ROOT
from ...advise.page.build import study
from ..report.test_classes import run_with
from ..report.test_rows import run_with as run_of_rows

RUNS = ROOT / "tests" / "runs"
EVERYTHING = """(() => {
  for (const one of document.querySelectorAll("details")) one.open = true;
  for (const one of CHARTS) { if (!one.plot) one.draw(); if (!one.table) toggleTable(one); }
  if (document.getElementById("scatter")) toggleRows();
})()"""
CONTROLS = """(() => {
  const all = "a, button, input, select, summary, [tabindex]",
    seen = (e) => e.getClientRects().length && e.tabIndex >= 0;
  return [...document.querySelectorAll(all)].filter(seen).map((e, i) => (e.dataset.stop = i));
})()"""
FOCUSED = """(() => {
  const one = document.activeElement, style = getComputedStyle(one);
  return { stop: one.dataset.stop, outline: style.outlineStyle, name: one.id || one.textContent.slice(0, 20) };
})()"""


def report_of(name: str) -> Callable[[Path], Path]:
    return lambda folder: write_report(RUNS / name, output=folder / "report.html")


def classifier(folder: Path) -> Path:
    return write_report(run_with(folder / "run", Confusion(["good", "bad"], [[5, 1], [2, 7]])))


def of_rows(folder: Path) -> Path:
    return write_report(run_of_rows(folder / "run"), texts=Texts({}, set(), {7: "a text"}))


def comparison(folder: Path) -> Path:
    histories = [read_history(RUNS / name) for name in ("healthy", "overfitting", "stock")]
    return write_comparison(compare_runs(histories), folder / "compare.html")


def study_page(folder: Path) -> Path:
    (folder / "study").mkdir()
    return write_study_page(study(folder / "study"))


def nothing_yet(folder: Path) -> Path:
    run = shutil.copytree(RUNS / "healthy", folder / "begun")
    (run / "metrics.jsonl").write_text("")
    return write_report(run, following=True)


PAGES = {
    "healed": report_of("healed"), "overfitting": report_of("overfitting"), "log": report_of("stock"),
    "classifier": classifier, "rows": of_rows, "comparison": comparison, "study": study_page,
    "nothing_yet": nothing_yet,
}  # fmt: skip


@pytest.mark.parametrize(("width", "scheme", "lang"), [(1280, "light", "en"), (390, "dark", "ko")])
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_nothing(opened, tmp_path, name, width, scheme, lang):
    axe = pytest.importorskip(
        "axe_playwright_python", reason="axe-playwright-python, which carries axe-core, is missing"
    )
    # the policy of the page would not let axe in
    page = opened(PAGES[name](tmp_path), width=width, color_scheme=scheme, bypass_csp=True).page
    page.click(f"#lang-{lang}")
    page.evaluate(EVERYTHING)
    page.evaluate((Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("axe.run()")
    assert len(found["passes"]) > 10
    assert [(rule["id"], [node["target"] for node in rule["nodes"]]) for rule in found["violations"]] == []


@pytest.mark.parametrize("name", PAGES)
def test_the_tab_key_stops_at_everything_once_in_order_and_shows_where(opened, tmp_path, name):
    page = opened(PAGES[name](tmp_path)).page
    stops = page.evaluate(CONTROLS)
    assert len(stops) >= 5
    for stop in stops:
        page.keyboard.press("Tab")
        focused = page.evaluate(FOCUSED)
        assert focused["stop"] == str(stop), focused
        assert focused["outline"] != "none", focused


def test_keys_move_every_control_of_a_run(opened, tmp_path):
    page = opened(PAGES["overfitting"](tmp_path)).page

    def press(selector: str, key: str, shows: str) -> Any:
        page.focus(selector)
        page.keyboard.press(key)
        return page.evaluate(shows)

    assert press("#axis", "ArrowDown", "STATE.axis") == "epoch"
    assert press("#smoothing", "ArrowRight", "STATE.smoothing") == 2
    assert press("#every", "ArrowRight", "STATE.every") == 2
    assert press("#words-note summary", "Enter", "document.getElementById('words-note').open")
    assert press("#loss", "2", "CHARTS[0].plot.series.map((one) => one.show)") == [True, True, False]
    assert press("#loss", "l", "CHARTS[0].plot.scales.y.distr") == 3
    assert press("#loss", "Enter", "document.querySelectorAll('#loss table').length") == 1
    assert press("#loss", "+", "ZOOM.length") == 2
    assert press("#zoom-out", "Enter", "ZOOM") is None
    tensor = page.evaluate("STATE.tensor")
    assert press("#tensor", "ArrowDown", "STATE.tensor") != tensor
    assert press("#quantity", "ArrowDown", "STATE.quantity") == "absmax"
    page.focus("#filter")
    page.keyboard.type("q_proj")
    assert set(page.evaluate("shown.columns.map((column) => GRID.columns[column])")) == {"self_attn.q_proj"}
    last = page.evaluate("STATE.bin")
    assert press("#bin", "ArrowLeft", "STATE.bin") == last - 1
    page.locator("#bin").fill("0")  # playing stops by itself at the last step
    assert press("#play", "Enter", "document.getElementById('play').getAttribute('aria-pressed')") == "true"
    assert press("#play", " ", "document.getElementById('play').getAttribute('aria-pressed')") == "false"
    assert press("#map-table", "Enter", "document.querySelectorAll('#cells tbody tr').length") > 0
    assert press("#lang-ko", "Enter", "document.documentElement.lang") == "ko"
    assert page.evaluate("document.activeElement.id") == "lang-ko"
    assert press("#contents a[href='#layers']", "Enter", "location.hash") == "#layers"
