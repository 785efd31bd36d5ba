"""The report in a browser: what it shows is what the store holds."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lora_train.instrument.read.load import load_run
from lora_train.instrument.show.report import write_report

from ....conftest import COMMAND_ENVIRONMENT, ROOT

RUNS = ROOT / "tests" / "runs"
HOSTILE = "</script><img src=x onerror=alert(1)>\"'&<b>\u202e\u05d0 {{plotly}} {{data}}" + "x" * 300


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return shutil.copytree(RUNS / "healed", tmp_path / "healed")


def click_cell(page: Any, row: int, column: int) -> None:
    """Clicks the middle of a cell of the heat map, in plotly's own coordinates."""
    page.locator("#map").scroll_into_view_if_needed()
    box = page.evaluate(
        """([row, column]) => {
          const map = document.getElementById('map'), area = map.querySelector('.nsewdrag').getBoundingClientRect();
          const x = map._fullLayout.xaxis, y = map._fullLayout.yaxis, z = map.data[0];
          return [area.left + x.d2p(z.x[column]), area.top + y.d2p(z.y[row])];
        }""",
        [row, column],
    )
    page.mouse.move(*box)
    page.mouse.click(*box)


@pytest.mark.parametrize("metric", ["norm", "absmax", "nonfinite"])
def test_a_cell_that_is_clicked_shows_what_the_store_has(opened, run, metric):
    page = opened(write_report(run)).page
    page.select_option("#metric", metric)
    page.fill("#filter", "layers.1.mlp")
    names = page.evaluate(f"shownSites('{metric}').map((i) => GRID.names[i])")
    bins = page.evaluate("GRID.bins")
    assert names
    assert all(first == last for first, last in bins)  # few enough steps for a column each
    row, column = len(names) // 2, 20
    click_cell(page, row, column)
    page.wait_for_selector("#history .main-svg")
    shown = page.inner_text("#cell")
    assert shown.startswith(names[row])
    step = bins[column][0]
    columns = ["n_nan", "n_inf"] if metric == "nonfinite" else [metric]
    stored = load_run(run).stats(None, columns, step).set_index("site").loc[names[row]]
    value = float(page.get_attribute("#cell", "data-value"))
    assert value == pytest.approx(float(sum(stored[name] for name in columns)), rel=1e-6)


def test_the_page_in_both_languages_and_sizes(opened, run, tmp_path):
    path = write_report(run)
    page = opened(path).page
    assert "Collapses" in page.inner_text("main")
    assert "gpt_neox.layers.2.mlp.dense_4h_to_h" in page.inner_text(".incident")
    assert "lora-train replay" in page.inner_text(".incident")
    page.click("#lang-ko")
    assert "붕괴" in page.inner_text("main")
    assert page.get_attribute("html", "lang") == "ko"
    page.reload()
    assert page.get_attribute("html", "lang") == "ko"  # kept
    phone = opened(path, width=390, height=844, color_scheme="dark").page
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    assert phone.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(13, 17, 23)"


def test_a_loss_that_is_not_finite_is_a_gap_and_a_mark_and_never_zero(opened, run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line.get("step") == 30 and "eval_loss" not in line:
            line |= {"loss": None, "nonfinite_micro_batches": 1}
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = opened(write_report(run)).page
    data = page.evaluate("document.getElementById('loss').data.map((d) => ({name: d.name, x: d.x, y: d.y}))")
    (curve,) = [trace for trace in data if trace["name"] == "Loss"]
    assert curve["y"][curve["x"].index(30)] is None
    (marks,) = [trace for trace in data if trace["name"] == "not finite"]
    assert marks["x"] == [30]


def test_sliders_smooth_and_coarsen(opened, run):
    page = opened(write_report(run)).page
    losses = page.evaluate("S.loss")
    page.locator("#every").fill("5")
    shown = page.evaluate("document.getElementById('loss').data[0]")
    assert len(shown["y"]) == -(-len(losses) // 5)
    assert shown["y"][0] == pytest.approx(sum(losses[:5]) / 5)
    page.locator("#every").fill("1")
    page.locator("#smoothing").fill("3")
    smoothed = page.evaluate("document.getElementById('loss').data[1].y")
    assert smoothed[1] == pytest.approx(sum(losses[:3]) / 3)


def test_hostile_text_is_text(opened, tmp_path):
    run = shutil.copytree(RUNS / "healed", tmp_path / "a<b>&'\"")
    config = run / "config.yaml"
    config.write_text(config.read_text() + f"\nextra:\n  note: {json.dumps(HOSTILE)}\n")
    diagnosis = next(run.glob("incidents/*/diagnosis.json"))
    facts = json.loads(diagnosis.read_text()) | {"module": HOSTILE}
    facts["remedies"][0]["change"] = HOSTILE
    diagnosis.write_text(json.dumps(facts))
    sites = json.loads((run / "sites.json").read_text())
    text = json.dumps(sites).replace("layers.1.mlp", "layers.1.<img src=x onerror=alert(1)>")
    (run / "sites.json").write_text(text)
    found = opened(write_report(run))
    assert found.page.title() == str(run)
    assert found.page.evaluate("document.images.length") == 0
    assert HOSTILE in found.page.locator(".incident").first.text_content()
    found.page.evaluate("document.querySelectorAll('details').forEach((d) => d.open = true)")
    assert HOSTILE in found.page.locator("details").first.text_content()


@pytest.mark.parametrize("state", ["none", "one", "torn", "no_stats", "damaged_stats", "nan"])
def test_runs_that_are_not_whole_give_a_page(opened, run, state):
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().splitlines()
    if state == "none":
        metrics.write_text("")
        shutil.rmtree(run / "stats")
    elif state == "one":
        metrics.write_text(lines[0] + "\n")
    elif state == "torn":
        metrics.write_text("\n".join(lines[:20]) + "\n" + lines[20][:50])
        (run / "env.json").write_text('{"schema_')
        (run / "config.yaml").write_text("model: [")
    elif state == "no_stats":
        shutil.rmtree(run / "stats")
    elif state == "damaged_stats":
        for path in (run / "stats").iterdir():
            path.write_bytes(path.read_bytes()[:1000] + b"\0" * 100)
    else:
        rows = [json.loads(line) for line in lines]
        nothing = dict.fromkeys(("loss", "grad_norm", "learning_rate", "tokens", "host_memory_gib", "step_seconds"))
        metrics.write_text("".join(json.dumps({**row, **nothing}) + "\n" for row in rows))
    page = opened(write_report(run)).page
    page.wait_for_selector("section h2")
    if state == "none":
        assert "No step is recorded yet." in page.inner_text("main")
    if state == "one":
        assert page.evaluate("X") == [1]
    if state == "damaged_stats":
        assert "cannot be read" in page.inner_text("main")


def test_follow_shows_what_comes_and_keeps_its_place(opened, run):
    lines = [line for line in (run / "metrics.jsonl").read_text().splitlines() if "train_runtime" not in line]
    (run / "metrics.jsonl").write_text("\n".join(lines[:10]) + "\n")
    command = [str(Path(sys.executable).with_name("lora-train")), "report", str(run), "--follow"]
    with subprocess.Popen(command, env=COMMAND_ENVIRONMENT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert "report.html" in process.stdout.readline()
            page = opened(run / "report.html").page
            before = page.evaluate("X.length")
            page.click("#lang-ko")
            page.evaluate("window.scrollTo(0, 700)")
            with (run / "metrics.jsonl").open("a") as file:
                file.write("\n".join(lines[10:30]) + "\n")
            # not evaluate: the page may be in the middle of a reload
            page.wait_for_function(f"typeof X !== 'undefined' && X.length > {before}", timeout=60_000)
            assert page.get_attribute("html", "lang") == "ko"
            assert page.evaluate("window.scrollY") == pytest.approx(700, abs=5)
            with (run / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"start": 0, "train_runtime": 1.0}) + "\n")
            assert process.wait(60) == 0
        finally:
            process.kill()


def test_a_stock_state_has_a_page(opened, tmp_path):
    path = write_report(RUNS / "stock" / "trainer_state.json", tmp_path / "stock.html")
    text = opened(path).page.inner_text("main")
    assert "It is not overfitting." in text
    assert "This run recorded no statistics of layers." in text


def test_the_comparison_page(opened, tmp_path):
    from lora_train.instrument.judge.explain import read_history
    from lora_train.instrument.show.compare import compare_runs, write_comparison

    histories = [read_history(RUNS / name) for name in ("healthy", "overfitting")]
    page = opened(write_comparison(compare_runs(histories), tmp_path / "compare.html")).page
    page.wait_for_selector("#overlay .main-svg")
    assert page.evaluate("document.getElementById('overlay').data.length") == 2
    page.select_option("#axis", "tokens")
    tokens = histories[0].column("tokens").cumsum()
    assert page.evaluate("document.getElementById('overlay').data[0].x.at(-1)") == pytest.approx(tokens[-1])
    page.select_option("#metric", "eval_loss")
    assert page.evaluate("document.getElementById('overlay').data[0].y.length") == len(histories[0].evals)
    assert "learning_rate" in page.inner_text("main")
