"""The page of one run: waited for, told its lines, told when it ends; another file is read anew."""

from __future__ import annotations

import json
import re

import pytest
from lora_train.instrument.board.serve.follow import RunSite, begun, goes_on
from lora_train.instrument.board.serve.server import Server
from lora_train.instrument.read.logs import read_history

from ..build import append, copy, held, metrics
from .client import ask, events


@pytest.fixture
def served(tmp_path):
    server = Server(RunSite(tmp_path / "run"), 0)
    with server.running():
        yield server, tmp_path / "run"


def data(text: str) -> dict:
    return json.loads(re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[0])


def test_a_run_that_has_not_begun_is_waited_for(served):
    server, run = served
    got = ask(server, "")
    assert got.status == 200
    assert data(got.text)["en"].startswith("Waiting for run")
    assert "connect-src 'self'" in got.headers["content-security-policy"]
    with held(run):  # the model is being loaded
        (run / "config.yaml").write_text("{}")
        assert not begun(run)
        assert data(ask(server, "").text)["ko"].startswith("run 실행을 기다립니다")
        stream = events(server, "events")
        (run / "metrics.jsonl").write_text("".join(metrics()[:3]))
        assert next(stream) == ("begun", {}, "")
        assert list(stream) == []
        assert data(ask(server, "").text)["steps"]["step"] == [1, 2, 3]


def test_the_end_of_a_run_ends_its_stream(served):
    server, run = served
    copy(run, lines=20)
    with held(run):
        page = data(ask(server, "").text)
        assert (page["running"], page["state"]) == (True, "running")
        stream = events(server, f"events?from={page['from']}")
        append(run, *metrics()[20:])
        name, rows, _ = next(stream)
        assert (name, len(rows)) == ("rows", len(metrics()) - 20)
    assert [name for name, *_ in stream] == ["ended"]
    last = ask(server, "data?layers=1").json()
    assert (last["running"], last["state"], last["following"]) == (False, "ended", False)
    assert last["from"] == (run / "metrics.jsonl").stat().st_size


@pytest.mark.parametrize("how", ["truncated", "rewritten"])
def test_a_log_that_is_another_one_is_read_anew(served, how):
    server, run = served
    copy(run, lines=20)
    with held(run):
        stream = events(server, f"events?from={(run / 'metrics.jsonl').stat().st_size}")
        append(run, metrics()[20])
        assert next(stream)[0] == "rows"
        lines = metrics()[:5] if how == "truncated" else [line.replace("0", "1") for line in metrics()]
        (run / "metrics.jsonl").write_text("".join(lines))
        assert [name for name, *_ in stream] == ["again"]


def test_lines_that_are_no_json_are_passed_over(served):
    server, run = served
    copy(run, lines=20)
    with held(run):
        stream = events(server, f"events?from={(run / 'metrics.jsonl').stat().st_size}")
        append(run, "no json\n", "\x00\n", "[1]\n", metrics()[20])
        assert next(stream)[1] == [json.loads(metrics()[20])]
        stream.close()


def test_who_goes_on(tmp_path):
    run = copy(tmp_path / "run", lines=20)
    assert not goes_on(run)
    with held(run):
        assert goes_on(run)
    (run / ".lock").unlink()
    assert goes_on(run)  # written just now by who has no lock
    whole = copy(tmp_path / "whole")
    (whole / ".lock").unlink()
    assert not goes_on(whole, read_history(whole))
    assert not goes_on(tmp_path / "gone")


def test_nothing_else_is_there(served):
    server, run = served
    copy(run)
    for path in ("x", "metrics.jsonl", "../", "marks"):
        assert ask(server, path).status == 404
