"""The report in a browser: it shows what the store holds, asks for nothing, and every part can be reached."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from lora_train.instrument.judge.explain import explain, read_history
from lora_train.instrument.read.load import load_run
from lora_train.instrument.show.report import write_report

from ....conftest import ROOT
from ...conftest import wait_until

RUNS = ROOT / "tests" / "runs"
HOSTILE = "</script><img src=x onerror=alert(1)>\"'&<b>\u202e\u05d0 {{scripts}} {{data}}" + "x" * 300
# What a chart drew, in the numbers it was given.
DRAWN = """(id) => {
  const { plot, spec } = CHARTS.find((one) => one.id === id), [x, ...y] = plot.data;
  return { x, y, labels: spec.lines.map((line) => line.label), marks: spec.marks, band: spec.band };
}"""
RANGE = """(() => {
  const all = shown.sites.flatMap((site) => GRID.bins.map((_, bin) => cell("norm", site, bin))).filter((v) => v > 0);
  return [Math.min(...all), Math.max(...all), shown.from, shown.to];
})()"""
NAMES = """[...document.querySelectorAll("button, a, [role=button], [title], [aria-label], [data-title]")]
  .map((one) => [one.matches("section") ? "" : one.textContent, one.title, one.getAttribute("aria-label")])
  .map((names) => names.join(" ").toLowerCase())"""
# The share of a chart's pixels whose red is far above their green.
RED = """(() => {
  const canvas = document.querySelector("#loss canvas"), { width, height } = canvas;
  const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
  let n = 0;
  for (let i = 0; i < data.length; i += 4) if (data[i + 3] > 0 && data[i] > data[i + 1] + 15) n++;
  return n / (width * height);
})()"""
STOPS = (
    """CHARTS.map(({ figure }) => [figure, ...figure.querySelectorAll("*")].filter((e) => e.tabIndex >= 0).length)"""
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return shutil.copytree(RUNS / "healed", tmp_path / "healed")


def drawn(page: Any, chart: str) -> dict[str, Any]:
    page.locator(f"#{chart}").scroll_into_view_if_needed()
    page.wait_for_selector(f"#{chart} canvas")
    return page.evaluate(DRAWN, chart)


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_paper_has_every_chart_in_light_colours_and_nothing_cut_off(opened, run, scheme):
    """Printing a dark page turns it light after `beforeprint`; nothing comes into view while it is printed."""
    page = opened(write_report(run), color_scheme=scheme).page
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print", color_scheme="light")
    wait_until(page, "css('--text') === '#1f2328'")
    wait_until(page, "CHARTS.length > 3 && CHARTS.every((one) => one.plot)")
    assert page.evaluate("getComputedStyle(document.querySelector('.status .verdict')).whiteSpace") == "normal"
    cut = "[...document.querySelectorAll('.scroll')].filter((one) => getComputedStyle(one).overflowY !== 'visible')"
    assert page.evaluate(cut + ".length") == 0


@pytest.mark.parametrize("quantity", ["norm", "absmax", "nonfinite", "headroom"])
def test_a_cell_shows_what_the_store_has(opened, run, quantity):
    page = opened(write_report(run)).page
    page.select_option("#tensor", "out" if quantity == "headroom" else "lora_A.grad")
    page.select_option("#quantity", quantity)
    page.fill("#filter", "dense_4h_to_h")
    bins = page.evaluate("GRID.bins")
    assert all(first == last for first, last in bins)  # few enough steps for a column each
    page.locator("#bin").fill("20")
    page.locator("#map").scroll_into_view_if_needed()
    box = page.evaluate("({...shown.box, n: shown.sites.map((s) => GRID.names[s])})")
    name = "gpt_neox.layers.1.mlp.dense_4h_to_h:" + ("out" if quantity == "headroom" else "lora_A.grad")
    # the module of layer 2 was healed to fp32, where nothing overflows
    assert len(box["n"]) == (3 if quantity == "headroom" else 4)
    page.click("#map", position={"x": box["left"] + box["across"] / 2, "y": box["top"] + 1.5 * box["down"]})
    assert page.inner_text("#cell").startswith(f"{name} · step {bins[20][0]} · ")
    columns = {"nonfinite": ["n_nan", "n_inf"], "headroom": ["absmax"]}.get(quantity, [quantity])
    stored = load_run(run).stats(None, columns, bins[20][0]).set_index("site").loc[name]
    expected = float(sum(stored[column] for column in columns))
    expected = 65504 / expected if quantity == "headroom" else expected
    assert float(page.get_attribute("#cell", "data-value")) == pytest.approx(expected, rel=1e-6)  # float32 in the page
    history = drawn(page, "history")
    assert history["y"][0][20] == pytest.approx(expected, rel=1e-6)


def test_every_cell_can_be_reached_by_arrow_keys_from_one_stop(opened, run):
    page = opened(write_report(run)).page
    page.select_option("#tensor", "out")
    page.focus("#map")
    seen = set()
    for _ in range(4):
        page.keyboard.press("ArrowUp")
    for row in range(4):
        for key in ("ArrowLeft", "ArrowRight"):
            page.keyboard.press(key)
            seen.add(page.inner_text("#cell").partition(" · ")[0])
        if row < 3:
            page.keyboard.press("ArrowDown")
    assert seen == set(page.evaluate("shown.sites.map((s) => GRID.names[s])"))
    assert len(seen) == 8


def test_a_filter_without_a_match_says_so(opened, run):
    page = opened(write_report(run)).page
    page.fill("#filter", "nothing_like_it")
    assert 'has "nothing_like_it" in its name' in page.inner_text("#model")
    assert page.locator("#map").count() == 0
    page.fill("#filter", "layers.1")
    assert page.evaluate("shown.rows.map((row) => GRID.rows[row])") == ["1"]
    assert page.locator("#map").count() == 1


def test_the_colour_bar_has_the_values_and_play_moves_the_step(opened, run):
    page = opened(write_report(run)).page
    values = page.evaluate(RANGE)
    assert values[:2] == values[2:]
    page.locator("#bin").fill("0")
    page.click("#play")
    wait_until(page, "STATE.bin > 2")
    page.click("#play")
    assert page.get_attribute("#play", "aria-pressed") == "false"


def test_the_page_in_both_languages_sizes_and_schemes(opened, run):
    path = write_report(run)
    page = opened(path).page
    assert "Collapses" in page.inner_text("main")
    card = page.inner_text(".incident")
    assert "gpt_neox.layers.2.mlp.dense_4h_to_h" in card
    assert "step 13: float16 overflow in the forward pass" in card
    assert "lora-train replay healed --step 13" in card
    tried = page.locator(".incident li").all_inner_texts()
    assert tried[1].startswith("the module in float32 precision.fp32_modules=[")
    assert page.locator(".incident li code").all_inner_texts() == [
        "precision.loss_scale=4096",
        "precision.fp32_modules=[gpt_neox.layers.2.mlp.dense_4h_to_h]",
        "data.skip_rows=[2,3,14,24]",
    ]  # fmt: skip
    assert "did not help" in tried[0]
    assert "helped, and was taken (loss 5.514)" in tried[1]
    page.click("#lang-ko")
    assert "붕괴" in page.inner_text("main")
    assert page.get_attribute("html", "lang") == "ko"
    page.reload()
    assert page.get_attribute("html", "lang") == "ko"  # kept
    phone = opened(path, width=390, height=844, color_scheme="dark").page
    assert phone.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(13, 17, 23)"
    phone.evaluate("CHARTS.forEach((one) => one.draw())")
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    phone.emulate_media(color_scheme="light")
    wait_until(phone, "getComputedStyle(document.body).backgroundColor === 'rgb(255, 255, 255)'")


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
@pytest.mark.parametrize("name", ["overfitting", "stock", "healed"])
def test_the_first_screen_holds_status_tiles_and_the_first_chart(opened, tmp_path, name, width, height):
    page = opened(write_report(RUNS / name, output=tmp_path / "x.html"), width=width, height=height).page
    page.wait_for_selector("#loss canvas")
    for part in (".status", ".tiles", "#loss .plot"):
        box = page.locator(part).bounding_box()
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= height, part
    for lang in ("en", "ko"):
        page.click(f"#lang-{lang}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_nothing_offers_an_upload_or_asks_for_anything(opened, run):
    """The request log is checked by `opened`; here what a person could click."""
    path = write_report(run)
    found = opened(path)
    page = found.page
    page.evaluate("CHARTS.forEach((one) => { one.draw(); toggleTable(one); })")
    names = page.evaluate(NAMES)
    assert len(names) > 20
    assert not [name for name in names if any(word in name for word in ("share", "upload", "cloud", "plotly"))]
    assert page.evaluate("[...document.querySelectorAll('a')].every((a) => a.getAttribute('href').startsWith('#'))")
    assert page.evaluate("document.querySelectorAll('form, iframe, link, img, object, embed').length") == 0
    assert found.errors == []
    assert page.evaluate("fetch('https://example.org/').then(() => 'sent', () => 'refused')") == "refused"
    assert "Content Security Policy" in "".join(found.errors)
    found.errors.clear()
    text = path.read_text(encoding="utf-8")
    assert str(run.parent) not in text


def test_zeros_of_a_stock_log_are_gaps_and_red_marks(opened, tmp_path):
    path = write_report(RUNS / "stock" / "trainer_state.json", output=tmp_path / "stock.html")
    page = opened(path).page
    found = drawn(page, "loss")
    assert found["y"][0][12:] == [None] * 48
    assert None not in found["y"][0][:12]
    (lost,) = found["marks"]
    assert (lost["kind"], lost["x"]) == ("lost", list(range(13, 61)))
    assert "never a 0" in page.inner_text("#loss figcaption")
    assert page.evaluate(RED) > 0.3
    assert page.locator(".status.wrong .word").inner_text() == "WRONG"
    assert "It is not overfitting." in page.inner_text("#problems")
    assert "This run recorded no statistics of layers." in page.inner_text("main")
    assert page.title() == "stock"


def test_a_loss_that_is_not_finite_is_a_gap_and_a_mark_and_never_zero(opened, run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line.get("step") == 30 and "eval_loss" not in line:
            line |= {"loss": None, "nonfinite_micro_batches": 1}
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = drawn(opened(write_report(run)).page, "loss")
    assert found["y"][0][found["x"].index(30)] is None
    assert {mark["kind"]: mark["x"] for mark in found["marks"]} == {"lost": [30], "dropped": [13], "collapse": [13]}


def test_the_numbers_are_the_findings(opened, run):
    page = opened(write_report(run)).page
    history = read_history(run)
    spread = next(f.values for f in explain(history) if f.key == "explain.grad_spread")
    band = drawn(page, "grad_norm")["band"]
    assert (band["low"], band["high"]) == (spread["low"], spread["high"])
    shown = f"{spread['low']:.3g} to {spread['high']:.3g}"
    assert shown in page.inner_text("#grad_norm figcaption")
    page.evaluate("document.querySelectorAll('details').forEach((d) => d.open = true)")
    assert f"nine in ten between {spread['low']:.3g} and {spread['high']:.3g}" in page.inner_text("#words")
    assert f"{spread['median']:.3g}" in page.inner_text(".tiles")


def test_axes_switch_zoom_and_come_back(opened, tmp_path):
    page = opened(write_report(RUNS / "overfitting", output=tmp_path / "x.html")).page
    history = read_history(RUNS / "overfitting")
    for axis, column in (("epoch", history.column("epoch")), ("tokens", history.column("tokens").cumsum()),
                         ("time", history.column("step_seconds").cumsum() / 60)):  # fmt: skip
        page.select_option("#axis", axis)
        assert drawn(page, "loss")["x"][-1] == pytest.approx(column[-1], rel=1e-6)
    page.select_option("#axis", "step")
    found = drawn(page, "loss")
    assert found["labels"] == ["training", "evaluation"]
    box = page.locator("#loss .u-over").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 60, steps=4)
    page.mouse.up()
    scale = "(() => { const s = CHARTS[0].plot.scales.x; return [s.min, s.max]; })()"
    low, high = page.evaluate(scale)
    assert (low, high) == (pytest.approx(1 + 119 * 0.25, abs=1), pytest.approx(1 + 119 * 0.5, abs=1))
    page.click("#zoom-out")
    assert page.evaluate(scale) == [1, 120]
    page.click("#loss [data-act=zoom]")
    page.click("#loss [data-act=zoom]")
    low, high = page.evaluate(scale)
    assert high - low == pytest.approx(119 / 4)
    page.locator("#loss .u-over").dblclick()
    assert page.evaluate(scale) == [1, 120]
    page.click("#loss [data-act=log]")
    assert page.evaluate("CHARTS[0].plot.scales.y.distr") == 3


def test_a_chart_is_one_stop_and_keys_read_it(opened, run):
    page = opened(write_report(run)).page
    page.wait_for_selector("#loss canvas")
    stops = page.evaluate(STOPS)
    assert set(stops) == {1}
    page.focus("#loss")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    losses = page.evaluate("DATA.steps.loss")
    assert page.inner_text("#loss .tip").startswith("step 2\n")
    assert f"{losses[1]:.5g}" in page.inner_text("#loss .tip")
    assert "step 2" in page.text_content("#loss [aria-live]")
    for _ in range(11):
        page.keyboard.press("ArrowRight")
    assert "first attempt: not finite, dropped" in page.inner_text("#loss .tip")
    assert "collapse" in page.inner_text("#loss .tip")
    page.keyboard.press("Enter")
    rows = page.locator("#loss tbody tr").all_inner_texts()
    assert len(rows) == 60
    assert rows[1].split() == ["2", f"{losses[1]:.7g}"]
    page.keyboard.press("l")
    assert page.evaluate("CHARTS[0].plot.scales.y.distr") == 3
    page.keyboard.press("+")
    assert page.locator("#zoom-out").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#zoom-out").is_visible()


def test_a_pointer_over_a_chart_is_told_name_value_step_and_mark(opened, run):
    page = opened(write_report(run)).page
    page.wait_for_selector("#loss canvas")
    box = page.locator("#loss .u-over").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 12 / 59, box["y"] + 80)
    tip = page.inner_text("#loss .tip")
    assert tip.startswith("step 13\n")
    assert "training 5.514 nat/token" in tip
    assert "collapse: float16 overflow in the forward pass" in tip


def test_a_pointer_between_two_evaluations_is_told_the_nearest_and_where_it_is(opened, tmp_path):
    page = opened(write_report(RUNS / "overfitting", output=tmp_path / "x.html")).page
    page.wait_for_selector("#loss canvas")
    page.focus("#loss")
    page.keyboard.press("Home")
    assert "evaluation" not in page.inner_text("#loss .tip")  # before the first of them
    for _ in range(13):
        page.keyboard.press("ArrowRight")
    evals = read_history(RUNS / "overfitting").evals.set_index("step")["eval_loss"]
    tip = page.inner_text("#loss .tip").splitlines()
    assert tip[0] == "step 14"
    assert tip[2] == f"evaluation {evals[10]:.5g} nat/token (step 10)"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#loss .tip").splitlines()[2].endswith("(step 20)")
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    assert page.inner_text("#loss .tip").splitlines()[2] == f"evaluation {evals[20]:.5g} nat/token"


def test_sliders_smooth_and_coarsen_and_the_axis_stays(opened, run):
    page = opened(write_report(run)).page
    losses = page.evaluate("DATA.steps.loss")
    drawn(page, "loss")
    page.locator("#every").fill("7")
    shown = drawn(page, "loss")
    assert len(shown["y"][0]) == -(-len(losses) // 7)
    assert shown["y"][0][0] == pytest.approx(sum(losses[:7]) / 7)
    assert page.evaluate("[CHARTS[0].plot.scales.x.min, CHARTS[0].plot.scales.x.max]") == [1, 60]
    page.locator("#every").fill("1")
    page.locator("#smoothing").fill("3")
    assert drawn(page, "loss")["y"][1][1] == pytest.approx(sum(losses[:3]) / 3)


def test_of_many_steps_the_course_stands_before_the_single_ones(opened, tmp_path):
    losses = [round(3 - i / 500 + 0.3 * (i % 7), 4) for i in range(600)]
    (tmp_path / "x.log").write_text(
        "".join(f"{{'loss': {loss}, 'epoch': {i / 600}}}\n" for i, loss in enumerate(losses))
    )
    page = opened(write_report(tmp_path / "x.log", output=tmp_path / "x.html")).page
    found = drawn(page, "loss")
    assert found["labels"] == ["each step", "training, mean of 6 steps"]
    assert found["y"][0] == losses
    assert found["y"][1][100] == pytest.approx(sum(losses[97:104]) / 7)  # of both sides alike
    page.locator("#smoothing").fill("1")
    assert drawn(page, "loss")["labels"] == ["training"]


def test_hostile_text_is_text_and_no_path_is_shown(opened, tmp_path):
    run = shutil.copytree(RUNS / "healed", tmp_path / "a<b>&'\"")
    config = run / "config.yaml"
    extra = f"\nextra:\n  note: {json.dumps(HOSTILE)}\n  model: /home/kim/models/llama\n"
    config.write_text(config.read_text() + extra)
    diagnosis = next(run.glob("incidents/*/diagnosis.json"))
    facts = json.loads(diagnosis.read_text()) | {"module": HOSTILE}
    facts["remedies"][0]["change"] = HOSTILE
    diagnosis.write_text(json.dumps(facts))
    sites = json.loads((run / "sites.json").read_text())
    text = json.dumps(sites).replace("layers.1.mlp", "layers.1.<img src=x onerror=alert(1)>")
    (run / "sites.json").write_text(text)
    path = write_report(run)
    found = opened(path)
    assert found.page.title() == run.name
    assert found.page.evaluate("document.images.length") == 0
    assert HOSTILE in found.page.locator(".incident").first.text_content()
    found.page.evaluate("document.querySelectorAll('details').forEach((d) => d.open = true)")
    settings = found.page.locator("#settings").text_content()
    assert HOSTILE in settings
    assert "…/llama" in settings
    page = path.read_text(encoding="utf-8")
    assert "kim" not in page
    assert str(tmp_path) not in page


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
    page.wait_for_selector("section h2", state="attached")
    page.evaluate("CHARTS.forEach((one) => { one.draw(); toggleTable(one); })")
    if state == "none":
        assert "No step is recorded yet." in page.inner_text("main")
    if state == "one":
        assert page.evaluate("STEPS") == [1]
    if state == "damaged_stats":
        assert "cannot be read" in page.inner_text("main")


def test_a_page_of_sixty_lines_is_small(tmp_path):
    assert write_report(RUNS / "stock", output=tmp_path / "stock.html").stat().st_size < 700_000
    assert write_report(RUNS / "healed", output=tmp_path / "healed.html").stat().st_size < 700_000
