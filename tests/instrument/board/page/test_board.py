"""The board in a browser: two clicks to a run or a comparison, live, by keys alone, without a complaint of axe-core."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lora_train.instrument.board import watch
from lora_train.instrument.board.marks import FILE
from lora_train.instrument.board.serve.follow import RunSite
from lora_train.instrument.board.serve.server import Server
from lora_train.instrument.board.serve.site import BoardSite
from lora_train.instrument.board.watch import Board

from ...advise.page.build import study
from ...conftest import wait_until
from ..build import HOSTILE, append, copy, held, metrics

NAMES = "[...document.querySelectorAll('tbody th a')].map((one) => one.textContent)"
POINTS = "ROWS.get('{id}').spark[0].length"
# A page that is loaded again is another one.
STAYS = "window.stays = (window.stays || 0) + 1"


@pytest.fixture
def root(tmp_path, tmp_path_factory, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(watch, "TICK", 0.1)
    monkeypatch.setattr(watch, "SCAN", 0.3)
    root = tmp_path / "runs"
    for name in ("healthy", "overfitting", "stock"):
        copy(root / name, name)
    return root


@pytest.fixture
def served(root) -> Iterator[Any]:
    """A board, started, with every verdict made; and its server."""
    made: list[Board] = []

    def serve(judged: bool = True) -> tuple[Server, Board]:
        board = Board(root)
        if judged:
            board.fill(lambda *_: None)
        server = Server(BoardSite(board), 0)
        running = server.running()
        running.__enter__()
        board.start()
        made.append(board)
        ended.append(running)
        return server, board

    ended: list[Any] = []
    yield serve
    for running in ended:
        running.__exit__(None, None, None)
    for board in made:
        board.close()


@pytest.fixture
def browse(chromium) -> Iterator[Any]:
    """Opens an address; at the end nothing but that server may have been asked, and nothing complained of."""
    every: list[tuple[Any, str, list[str], list[str]]] = []

    def browse_to(address: str, width: int = 1280, height: int = 900, **options: Any) -> Any:
        context = chromium.new_context(viewport={"width": width, "height": height}, **{"locale": "en-US", **options})
        page, complaints, asked = context.new_page(), [], []
        page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        every.append((page, address, complaints, asked))
        return page

    yield browse_to
    for page, address, complaints, asked in every:
        page.context.close()
        # what the server refuses, a browser logs: notes that cannot be kept; the icon of a page without its policy
        assert [text for text in complaints if "409" not in text and "Forbidden" not in text] == []
        assert [url for url in asked if not url.startswith(address)] == []


def line_of(page: Any, name: str) -> Any:
    """The line of a run."""
    return page.locator("tbody tr", has=page.get_by_role("link", name=name, exact=True))


def test_rows_say_what_the_runs_are(served, browse):
    server, _ = served()
    page = browse(server.address)
    assert sorted(page.evaluate(NAMES)) == ["healthy", "overfitting", "stock"]
    line = line_of(page, "overfitting").inner_text()
    for said in ("ended", "0.2961", "2.239", "step 30", "watch evaluation", "120"):
        assert said in line
    stock = line_of(page, "stock")
    assert "WRONG loss" in stock.inner_text()
    assert stock.locator("path.gap").count() == 1  # where the log printed zeros
    assert page.locator("tbody svg").first.get_attribute("aria-label").startswith("loss from ")
    assert page.title() == "Runs in runs"


# By the run's own name: the words of a verdict name other things.
ROW = "tbody tr:has(a:text-is('{}')) input"


def test_two_clicks_to_a_run_and_to_a_comparison(served, browse):
    server, _ = served()
    page = browse(server.address)
    page.click("tbody a >> text=healthy")
    page.wait_for_selector("#loss canvas")
    assert page.inner_text("h1") == "healthy"
    page.click("#board a")
    page.check(ROW.format("healthy"))
    assert page.is_disabled("#compare")
    page.check(ROW.format("overfitting"))
    page.click("#compare")
    wait_until(page, "typeof CHARTS !== 'undefined' && CHARTS.some((one) => one.plot)")
    assert [run["name"] for run in page.evaluate("DATA.runs")] == ["healthy", "overfitting"]


def test_only_what_was_appended_comes_and_the_page_stays(served, browse, root):
    run = copy(root / "live", lines=20)
    with held(run):
        server, board = served()
        page = browse(server.address)
        assert page.evaluate(STAYS) == 1
        id = next(row["id"] for row in board.shown()[1] if row["name"] == "live")
        page.check("tbody tr:has-text('live') input")
        page.focus("#find")
        before = page.evaluate(POINTS.format(id=id))
        append(run, *metrics()[20:25])
        added = sum("loss" in json.loads(line) for line in metrics()[20:25])
        wait_until(page, f"{POINTS.format(id=id)} === {before + added}")
        assert "running" in page.locator("tbody tr", has_text="live").inner_text()
        append(run, *metrics()[25:])
    wait_until(page, f"ROWS.get('{id}').status === 'ended'")
    assert page.evaluate(STAYS) == 2
    assert page.is_checked("tbody tr:has-text('live') input")
    assert page.evaluate("document.activeElement.id") == "find"
    copy(root / "later")
    wait_until(page, f"{NAMES}.includes('later')")


def test_order_filters_and_search(served, browse, root):
    copy(root / "killed", lines=20)
    server, _ = served()
    page = browse(server.address)
    page.click("th.c-name button")
    assert page.evaluate(NAMES) == ["healthy", "killed", "overfitting", "stock"]
    page.click("th.c-name button")
    assert page.evaluate(NAMES) == ["stock", "overfitting", "killed", "healthy"]
    assert page.get_attribute("th.c-name", "aria-sort") == "descending"
    page.click("th.c-best button")
    assert page.evaluate(NAMES)[0] == "overfitting"  # the lowest first, what has none last
    assert page.evaluate(NAMES)[-1] == "stock"
    page.select_option("#status", "crashed")
    assert page.evaluate(NAMES) == ["killed"]
    page.select_option("#status", "")
    page.select_option("#verdict", "wrong")
    assert page.evaluate(NAMES) == ["stock"]
    page.select_option("#verdict", "")
    page.keyboard.press("/")
    page.keyboard.type("ea th")
    assert page.evaluate(NAMES) == ["healthy"]
    page.fill("#find", "nothing like it")
    assert page.inner_text(".empty") == "No run is like that."


def test_tags_and_a_note(served, browse, root):
    server, _ = served()
    page, other = browse(server.address), browse(server.address)
    page.click("tbody tr:has-text('healthy') .edit")
    page.fill("#tags", f"keep, {HOSTILE[:30]}")
    page.fill("#note", "first line\n<b>second</b>")
    page.keyboard.press("Tab")
    page.click("dialog button.go")
    wait_until(page, "!document.querySelector('dialog')")
    kept = json.loads((root / FILE).read_text())["runs"]["healthy"]
    assert kept["note"] == "first line\n<b>second</b>"
    assert page.inner_text("tbody tr:has-text('healthy') .note") == "first line\n<b>second</b>"
    wait_until(other, "document.querySelectorAll('.tag').length === 2")
    page.click(".tag >> text=keep")
    assert page.evaluate(NAMES) == ["healthy"]
    assert page.locator("tbody img, tbody b").count() == 0


def test_what_cannot_be_kept_is_said_in_the_dialog(served, browse, root):
    (root / FILE).write_text("{")
    server, _ = served()
    page = browse(server.address)
    page.click("tbody tr:has-text('healthy') .edit")
    page.fill("#tags", ",".join(f"tag {i}" for i in range(30)))
    with page.expect_response("**/marks") as answer:
        page.click("dialog button.go")
    assert answer.value.status == 409
    wait_until(page, "document.querySelector('dialog .problem').textContent.length > 10")
    assert (root / FILE).read_text() == "{"


def test_trials_are_folded_into_their_study(served, browse, root):
    study(root / "sweep")
    server, _ = served()
    page = browse(server.address)
    assert "sweep/trials/000" not in page.evaluate(NAMES)
    assert "4 of 5 trials" in page.locator("tbody tr", has_text="sweep").inner_text()
    page.click(".fold")
    names = page.evaluate(NAMES)
    assert names[names.index("sweep") + 1 :][:3] != []
    assert {"sweep/trials/000", "sweep/trials/001.2", "sweep/trials/002"} <= set(names)
    assert page.get_attribute(".fold", "aria-expanded") == "true"
    page.click("tbody a >> text=sweep >> nth=0")
    page.wait_for_selector("main section")
    assert page.evaluate("DATA.trials.length") == 5


def test_a_name_is_no_markup(served, browse, root):
    copy(root / HOSTILE)
    server, _ = served()
    page = browse(server.address)
    assert HOSTILE in page.evaluate(NAMES)
    page.click("tbody tr:has-text('img') .edit")
    assert page.inner_text("dialog h2") == HOSTILE
    page.keyboard.press("Escape")
    page.click("tbody tr:has-text('img') a")
    page.wait_for_selector("#loss canvas")
    assert page.inner_text("h1") == HOSTILE
    assert page.locator("img").count() == 0


def test_rows_appear_as_they_are_judged(served, browse):
    server, board = served(judged=False)
    page = browse(server.address)
    assert len(page.evaluate(NAMES)) == 3
    wait_until(page, "[...ROWS.values()].every((row) => row.verdict && !row.pending)")
    assert "judged" not in page.inner_text("header")
    assert board.shown()[0] > 0


def test_an_empty_folder_says_what_will_happen(served, browse, root):
    for folder in root.iterdir():
        folder.rename(root.with_name(folder.name))
    server, _ = served()
    page = browse(server.address)
    assert page.inner_text(".empty").startswith("There is no run in runs yet")
    copy(root / "first")
    wait_until(page, f"{NAMES}.includes('first')")


def test_every_control_is_reached_and_moved_by_keys(served, browse, root):
    study(root / "sweep")
    server, _ = served()
    page = browse(server.address)
    page.evaluate("document.querySelectorAll('button, a, input, select').forEach((one, i) => (one.dataset.stop = i))")
    visible = """[...document.querySelectorAll('[data-stop]')].filter((one) => !one.disabled && one.offsetParent)
      .map((one) => one.dataset.stop)"""
    stops = page.evaluate(visible)
    seen = []
    for _ in stops:
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.dataset.stop"))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    assert seen == stops
    page.focus("th.c-name button")
    page.keyboard.press("Enter")
    assert page.evaluate("STATE.sort") == "name"
    page.focus(".fold")
    page.keyboard.press(" ")
    assert "sweep/trials/000" in page.evaluate(NAMES)
    page.focus(ROW.format("healthy"))
    page.keyboard.press(" ")
    assert page.evaluate("TICKED.size") == 1
    page.focus("tbody tr:has-text('healthy') .edit")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.closest('dialog') !== null")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.className") == "edit"


@pytest.mark.parametrize(
    ("width", "scheme", "lang"), [(1280, "light", "en"), (390, "dark", "ko"), (820, "light", "ko")]
)
def test_axe_finds_nothing_and_nothing_is_wider_than_the_page(served, browse, root, width, scheme, lang):
    axe = pytest.importorskip(
        "axe_playwright_python", reason="axe-playwright-python, which carries axe-core, is missing"
    )
    study(root / "sweep")
    copy(root / "killed", lines=20)
    copy(root / "broken", lines=0)
    (root / "broken" / "env.json").write_text('{"schema_version": 99}')
    copy(root / ("long_" * 40))
    with held(copy(root / "live", lines=20)):
        server, board = served()
        board.mark(next(iter(board.rows)), ["keep", "r 16"], "a note")
        page = browse(server.address, width, color_scheme=scheme, bypass_csp=True)
        page.click(f"#lang-{lang}")
        page.click(".fold")
        page.evaluate((Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
        for opened in (False, True):
            if opened:
                page.click("tbody .edit >> nth=0")
            found = page.evaluate("axe.run()")
            assert len(found["passes"]) > 10
            assert [(rule["id"], [node["target"] for node in rule["nodes"]]) for rule in found["violations"]] == []
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_on_the_pages_that_are_served(served, browse, root, scheme):
    axe = pytest.importorskip(
        "axe_playwright_python", reason="axe-playwright-python, which carries axe-core, is missing"
    )
    server, board = served()
    ids = [row["id"] for row in board.shown()[1]]
    for path in (f"run/{ids[0]}/", f"compare?id={ids[0]}&id={ids[1]}"):
        page = browse(server.address + path, color_scheme=scheme, bypass_csp=True)
        page.evaluate((Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
        found = page.evaluate("axe.run()")
        assert [(rule["id"], [node["target"] for node in rule["nodes"]]) for rule in found["violations"]] == []


def test_both_languages_switch_in_place_and_stay(served, browse):
    server, _ = served()
    page = browse(server.address, locale="ko-KR")
    assert page.inner_text("h1") == "runs의 실행"
    page.click("#lang-en")
    assert page.inner_text("h1") == "Runs in runs"
    page.click("tbody a >> nth=0")
    page.wait_for_selector("#loss canvas")
    assert page.get_attribute("html", "lang") == "en"


def test_a_board_that_is_closed_is_said_to_be(served, browse, root):
    board = Board(root)
    server = Server(BoardSite(board), 0)
    with server.running():
        page = browse(server.address)
        wait_until(page, "stream.readyState === 1")
    wait_until(page, "!document.getElementById('lost').hidden")
    assert "start it again" in page.inner_text("#lost")
    page.evaluate("stream.close()")
    board.close()


def test_the_page_of_a_run_grows_and_keeps_what_one_looks_at(browse, tmp_path):
    run = tmp_path / "run"
    server = Server(RunSite(run), 0)
    with server.running():
        page = browse(server.address)
        assert page.inner_text("[role=status]").startswith("Waiting for run")
        copy(tmp_path / "made", lines=40).rename(run)
        with held(run):
            wait_until(page, "typeof CHARTS !== 'undefined' && CHARTS[0].plot !== null")
            page.evaluate(STAYS)
            page.evaluate("zoomTo([5, 15])")
            page.evaluate("window.scrollTo(0, 300)")
            page.evaluate("window.canvas = document.querySelector('#loss canvas')")
            steps = sum("loss" in json.loads(line) for line in metrics()[:60])
            append(run, *metrics()[40:60])
            wait_until(page, f"DATA.steps.step.length === {steps}")
            assert page.evaluate("CHARTS[0].plot.data[0].at(-1)") == steps
            assert page.evaluate("ZOOM") == [5, 15]
            assert page.evaluate("scrollY") == 300
            assert page.evaluate("window.canvas === document.querySelector('#loss canvas')")  # not drawn anew
            append(run, *metrics()[60:])
        wait_until(page, "DATA.state === 'ended'")
        assert page.evaluate("DATA.steps.step.length") == 150
        assert page.evaluate("window.stays") == 1
        wait_until(page, "document.getElementById('feed').textContent === 'the run is over'")
