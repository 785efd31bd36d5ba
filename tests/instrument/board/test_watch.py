"""The rows of a folder: there at once, true after a while, and told by what has changed in them."""

from __future__ import annotations

import json
import shutil

import pytest
from lora_train.instrument.board import watch
from lora_train.instrument.board.card import card_of
from lora_train.instrument.board.watch import Board

from ..advise.page.build import study
from .build import append, copy, held, metrics, tree, until

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def quick(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    for name, value in {"TICK": 0.05, "SCAN": 0.05, "AGAIN": 0.5, "SHARE": 1}.items():
        monkeypatch.setattr(watch, name, value)


@pytest.fixture
def boards():
    made: list[Board] = []

    def make(root, started=True) -> Board:
        board = Board(root)
        made.append(board)
        if started:
            board.start()
        return board

    yield make
    for board in made:
        board.close()


def rows(board) -> dict:
    return {row["name"]: row for row in board.shown()[1]}


def test_rows_are_there_before_anything_is_read(tmp_path, boards):
    copy(tmp_path / "ended")
    copy(tmp_path / "crashed", lines=20)
    board = boards(tmp_path, started=False)
    found = rows(board)
    assert (found["ended"]["status"], found["crashed"]["status"]) == ("ended", "crashed")
    assert found["ended"]["step"] == 150
    assert found["ended"]["pending"]
    assert "verdict" not in found["ended"]


def test_verdicts_fill_in_and_the_second_opening_has_them_all(tmp_path, boards):
    for name in ("a", "b"):
        copy(tmp_path / name)
    before = tree(tmp_path)
    board = boards(tmp_path)
    until(lambda: not any(row["pending"] for row in rows(board).values()))
    card = card_of(tmp_path / "a", "run")
    assert rows(board)["a"]["verdict"] == card["verdict"]
    board.close()
    again = boards(tmp_path, started=False)
    assert rows(again) == rows(board)
    assert not any(row["pending"] for row in rows(again).values())
    assert tree(tmp_path) == before


def test_of_a_run_that_goes_on_only_what_was_appended_is_told(tmp_path, boards):
    run = copy(tmp_path / "run", lines=20)
    copy(tmp_path / "other")
    with held(run):
        board = boards(tmp_path)
        until(lambda: not rows(board)["other"]["pending"])
        assert rows(board)["run"]["status"] == "running"
        row = board.row(rows(board)["run"]["id"])
        until(lambda: row.fresh)
        with board._changed:
            row.next_ask = float("inf")  # its verdict is not made again during this test
            since = board.version
        last = json.loads(metrics()[19])["step"]
        append(run, {"step": last + 1, "loss": 1.25}, {"step": last + 2, "loss": None}, "no json\n", '{"torn')
        version, change = until(lambda: board.changes(since, 0.1))
        while len(change["points"].get(row.one.id, ())) < 2:
            version, change = until(lambda: board.changes(since, 0.1))
        assert change == {"rows": [], "points": {row.one.id: [[last + 1, 1.25], [last + 2, None]]}, "gone": []}
        assert board.changes(version, 0.01) is None
        assert rows(board)["run"]["spark"][0][-2:] == [last + 1, last + 2]
        assert "loss" not in rows(board)["run"]  # the last one is not finite
        append(run, '"}\n', {"step": last + 1, "loss": 2.0})  # run again
        until(lambda: rows(board)["run"]["spark"][1][-1] == 2.0)
        assert rows(board)["run"]["spark"][0][-1] == last + 1


def test_a_run_that_was_cut_off_is_read_anew(tmp_path, boards):
    run = copy(tmp_path / "run", lines=40)
    with held(run):
        board = boards(tmp_path)
        until(lambda: rows(board)["run"].get("verdict"))
        (run / "metrics.jsonl").write_text("".join(metrics()[:10]))
        expected = card_of(run, "run", judged=False)["step"]
        until(lambda: rows(board)["run"]["step"] == expected)


def test_the_end_of_a_run_is_seen(tmp_path, boards):
    run = copy(tmp_path / "run", lines=20)
    board = boards(tmp_path)
    until(lambda: rows(board)["run"]["status"] == "crashed")
    with held(run):
        until(lambda: rows(board)["run"]["status"] == "running")
        append(run, *metrics()[20:])
    until(lambda: rows(board)["run"]["status"] == "ended")
    until(lambda: not rows(board)["run"]["pending"])
    assert rows(board)["run"]["verdict"] == card_of(run, "run")["verdict"]


def test_runs_come_and_go(tmp_path, boards):
    copy(tmp_path / "a")
    board = boards(tmp_path)
    version, _ = board.shown()
    copy(tmp_path / "b")
    until(lambda: "b" in rows(board))
    gone = rows(board)["a"]["id"]
    shutil.rmtree(tmp_path / "a")
    until(lambda: "a" not in rows(board))
    _, change = board.changes(version, 1)
    assert [row["name"] for row in change["rows"]] == ["b"]
    assert change["gone"] == [gone]


def test_a_study_runs_while_one_of_its_trials_does(tmp_path, boards):
    folder = study(tmp_path / "sweep")
    board = boards(tmp_path)
    until(lambda: rows(board)["sweep"]["status"] == "stopped" and not rows(board)["sweep"]["pending"])
    found = rows(board)
    assert (found["sweep"]["trials"], found["sweep"]["ended"]) == (5, 4)
    assert found["sweep/trials/000"]["study"] == found["sweep"]["id"]
    with held(folder / "trials" / "002"):
        until(lambda: rows(board)["sweep"]["status"] == "running")


def test_marks_are_rows_too(tmp_path, boards):
    copy(tmp_path / "a")
    board = boards(tmp_path, started=False)
    version, ((row),) = board.shown()
    assert board.mark(row["id"], ["x"], "y") == {"tags": ["x"], "note": "y"}
    assert board.mark("0" * 16, ["x"], "y") is None
    _, change = board.changes(version, 0.1)
    assert (change["rows"][0]["tags"], change["rows"][0]["note"]) == (["x"], "y")
    assert rows(boards(tmp_path, started=False))["a"]["tags"] == ["x"]


def test_of_a_folder_that_is_a_run_the_notes_lie_beside_it(tmp_path, boards):
    run = copy(tmp_path / "runs" / "a")
    copy(run / "second")
    before = tree(run)
    board = boards(run, started=False)
    for name, row in rows(board).items():
        board.mark(row["id"], [name], "")
    assert tree(run) == before
    above = rows(boards(tmp_path / "runs", started=False))
    assert {name: row["tags"] for name, row in above.items()} == {"a": ["a"], "a/second": ["second"]}
    again = rows(boards(run, started=False))
    assert {name: row["tags"] for name, row in again.items()} == {"a": ["a"], "second": ["second"]}


def test_without_a_thread_every_card_can_be_made_at_once(tmp_path, boards):
    for name in ("a", "b"):
        copy(tmp_path / name)
    board, told = boards(tmp_path, started=False), []
    board.fill(lambda done, total: told.append((done, total)))
    assert told == [(0, 2), (1, 2)]
    assert not any(row["pending"] for row in rows(board).values())
