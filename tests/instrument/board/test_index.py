"""Cards are kept outside of the runs, count while size and time are the same, and may be lost at any time."""

from __future__ import annotations

import json
import os

import pytest
from lora_train.instrument.board import index as module
from lora_train.instrument.board.card import card_of
from lora_train.instrument.board.find import find_runs
from lora_train.instrument.board.index import Index, cache_folder

from .build import append, copy, tree


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def kept(root) -> Index:
    index = Index(root)
    (one,) = find_runs(root)
    index.put(one, card_of(one.path, one.kind))
    index.save([one.id])
    return index


def test_a_card_holds_until_its_run_is_written_on(tmp_path):
    run = copy(tmp_path / "runs" / "a")
    before = tree(tmp_path / "runs")
    path = kept(tmp_path / "runs").path
    assert path.parent == cache_folder()
    assert os.stat(path.parent).st_mode & 0o077 == 0  # whoever else uses the machine
    assert tree(tmp_path / "runs") == before
    (one,) = find_runs(tmp_path / "runs")
    assert Index(tmp_path / "runs").get(one) == (card_of(run, "run"), True)
    append(run, {"start": 1, "step": 151, "loss": 1.0})
    (later,) = find_runs(tmp_path / "runs")
    card, fresh = Index(tmp_path / "runs").get(later)
    assert card is not None  # what was known is shown until it is made again
    assert not fresh


def test_a_quick_card_does_not_count_as_judged(tmp_path):
    copy(tmp_path / "a")
    index = Index(tmp_path)
    (one,) = find_runs(tmp_path)
    index.put(one, card_of(one.path, one.kind, judged=False))
    assert index.get(one)[1] is False


def test_other_rules_judge_again(tmp_path, monkeypatch):
    copy(tmp_path / "a")
    kept(tmp_path)
    monkeypatch.setattr(module, "rules", lambda: "others")
    assert Index(tmp_path).get(find_runs(tmp_path)[0]) == (None, False)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"rules": 1}', '{"rules": "R", "cards": [1]}', "\x00\xff"])
def test_a_damaged_file_is_made_again(tmp_path, text):
    copy(tmp_path / "a")
    path = kept(tmp_path).path
    path.write_text(text.replace('"R"', json.dumps(module.rules())))
    (one,) = find_runs(tmp_path)
    assert Index(tmp_path).get(one) == (None, False)
    assert kept(tmp_path).get(one)[1]


def test_where_nothing_can_be_kept_nothing_is(tmp_path, monkeypatch):
    copy(tmp_path / "runs" / "a")
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    index = kept(tmp_path / "runs")
    assert not index.path.exists()
    assert index.get(find_runs(tmp_path / "runs")[0])[1]


def test_runs_that_are_gone_are_forgotten(tmp_path):
    copy(tmp_path / "a")
    index = kept(tmp_path)
    index.save([])
    assert json.loads(index.path.read_text())["cards"] == {}
    assert [path.name for path in index.path.parent.iterdir()] == [index.path.name]
