"""The addresses of a board: pages, streams and notes; nothing outside of the folder, and no name taken for markup."""

from __future__ import annotations

import json
import re
from html import unescape

import pytest
from lora_train.instrument.board import watch
from lora_train.instrument.board.marks import FILE
from lora_train.instrument.board.serve.server import Server
from lora_train.instrument.board.serve.site import BoardSite
from lora_train.instrument.board.watch import Board

from ...advise.page.build import study
from ..build import HOSTILE, append, copy, held, metrics, tree
from .client import ask, events, post


@pytest.fixture
def served(tmp_path, tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(watch, "TICK", 0.05)
    root = tmp_path / "runs"
    for name, source in (("a", "healthy"), ("b", "overfitting"), (HOSTILE, "healthy")):
        copy(root / name, source)
    (tmp_path / "secret.txt").write_text("secret")
    board = Board(root)
    server = Server(BoardSite(board), 0)
    with server.running():
        yield server, board
    board.close()


def ids(board: Board) -> dict[str, str]:
    return {row["name"]: row["id"] for row in board.shown()[1]}


def data(text: str) -> dict:
    return json.loads(re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[0])


def test_the_page_holds_every_row(served):
    server, board = served
    got = ask(server, "")
    found = data(got.text)
    assert {row["name"] for row in found["rows"]} == {"a", "b", HOSTILE}
    assert found["version"] == board.version
    assert HOSTILE not in got.text
    assert "<img" not in got.text
    policy = got.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy


def test_nothing_is_fetched_from_elsewhere(served):
    server, board = served
    for path in ("", f"run/{ids(board)['a']}/"):
        assert not re.findall(r'(?:src|href)\s*=\s*["\']?\s*(?:https?:)?//', ask(server, path).text)


PATHS = [
    "../secret.txt", "%2e%2e/secret.txt", "..%2fsecret.txt", "run/../../secret.txt", "run/..%2f..%2fsecret.txt/",
    "run//etc/passwd", "run/%2fetc%2fpasswd/", "run/a/", "run/0000000000000000/", "run/{a}", "study/{a}/", "run/{A}/",
    "run/{a}/../../secret.txt", "run/{a}/metrics.jsonl", "run/{a}/report.html", "run/{a}%00/", "run/{a}/events/x",
    "compare", "compare?id={a}", "compare?id={a}&id={a}", "compare?id={a}&id=../../secret.txt",
    "compare?id={a}&id=0000000000000000", "marks", ".lora-board.json", "board.js", "events/",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_no_address_is_a_path(served, path):
    server, board = served
    one = ids(board)["a"]
    got = ask(server, path.format(a=one, A=one.upper() + "G"))
    assert got.status == 404
    assert "secret" not in got.text.replace("secret.txt", "")
    assert "root:" not in got.text


def test_a_run_and_a_comparison(served):
    server, board = served
    known = ids(board)
    page = ask(server, f"run/{known[HOSTILE]}/")
    assert page.status == 200
    assert data(page.text)["name"] == HOSTILE
    assert "<img" not in page.text
    assert data(page.text)["back"] == "../../"
    policy = unescape(re.findall(r'Content-Security-Policy" content="([^"]*)"', page.text)[0])
    assert "connect-src 'self'" in policy
    both = ask(server, f"compare?id={known['a']}&id={known['b']}")
    assert [run["name"] for run in data(both.text)["runs"]] == ["a", "b"]


def test_a_study_has_its_page(served, tmp_path):
    server, board = served
    study(tmp_path / "runs" / "sweep")
    board.scan()
    page = ask(server, f"study/{ids(board)['sweep']}/")
    assert page.status == 200
    assert len(data(page.text)["trials"]) == 5
    assert "<img" not in page.text


def test_a_run_that_cannot_be_read_says_why(served, tmp_path):
    server, board = served
    copy(tmp_path / "runs" / "empty", lines=0)
    (tmp_path / "runs" / "empty" / "env.json").write_text('{"schema_version": 99}')
    board.scan()
    got = ask(server, f"run/{ids(board)['empty']}/")
    assert got.status == 404
    assert "another version" in got.text


def test_looking_writes_nothing_into_runs(served, tmp_path):
    server, board = served
    before = tree(tmp_path)
    for path in ("", f"run/{ids(board)['a']}/", f"compare?id={ids(board)['a']}&id={ids(board)['b']}"):
        assert ask(server, path).status == 200
    assert tree(tmp_path) == before


def test_tags_and_notes_are_kept_beside_the_runs(served, tmp_path):
    server, board = served
    before = tree(tmp_path / "runs" / "a")
    got = post(server, "marks", {"id": ids(board)["a"], "tags": ["<b>", "x"], "note": "</script>"})
    assert (got.status, got.json()) == (200, {"tags": ["<b>", "x"], "note": "</script>"})
    assert json.loads((tmp_path / "runs" / FILE).read_text())["runs"] == {
        "a": {"tags": ["<b>", "x"], "note": "</script>"}
    }
    assert tree(tmp_path / "runs" / "a") == before
    page = ask(server, "").text
    assert next(row for row in data(page)["rows"] if row["name"] == "a")["tags"] == ["<b>", "x"]
    assert "<b>" not in page


def test_marks_that_are_refused(served, tmp_path):
    server, board = served
    one = ids(board)["a"]
    for body, status in (
        ([], 400),
        ({}, 400),
        ({"id": 3}, 400),
        ({"id": "../a", "tags": [], "note": ""}, 404),
        ({"id": one, "tags": "x", "note": ""}, 409),
        ({"id": one, "tags": ["x" * 1000], "note": ""}, 409),
    ):
        assert post(server, "marks", body).status == status, body
    assert not (tmp_path / "runs" / FILE).exists()
    (tmp_path / "runs" / FILE).mkdir()
    got = post(server, "marks", {"id": one, "tags": ["x"], "note": ""})
    assert got.status in (409, 500)
    assert "lora-board" in got.json()["error"]
    assert post(server, "", {}).status == 404


def test_the_stream_tells_what_changes(served):
    server, board = served
    stream = events(server, f"events?since={board.version}")
    board.mark(ids(board)["a"], ["x"], "")
    name, change, version = next(stream)
    assert name == "change"
    assert [row["name"] for row in change["rows"]] == ["a"]
    stream.close()
    board.mark(ids(board)["b"], ["y"], "")
    again = events(server, "events?since=0", Last_Event_ID=version)
    assert [row["name"] for row in next(again)[1]["rows"]] == ["b"]
    again.close()
    (first, *_) = next(events(server, "events?since=x"))[1]["rows"]
    assert first["name"]


def test_the_page_of_a_run_is_told_its_new_lines(served, tmp_path):
    server, board = served
    run = copy(tmp_path / "runs" / "live", lines=20)
    with held(run):
        board.scan()
        own = f"run/{ids(board)['live']}"
        page = data(ask(server, f"{own}/").text)
        assert page["running"]
        stream = events(server, f"{own}/events?from={page['from']}")
        append(run, *metrics()[20:22])
        name, rows, at = next(stream)
        assert (name, rows) == ("rows", [json.loads(line) for line in metrics()[20:22]])
        assert int(at) == (run / "metrics.jsonl").stat().st_size
        stream.close()
        later = ask(server, f"{own}/data").json()
        assert "layers" not in later
        assert later["from"] == int(at)
        assert "layers" in ask(server, f"{own}/data?layers=1").json()
