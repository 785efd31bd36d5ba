"""The lock of a run folder, looked at by those who do not take it."""

from __future__ import annotations

from lora_train.instrument.read.lock import is_held

from ..board.build import copy, held


def test_whoever_looks_stands_in_nobodys_way(tmp_path):
    run = copy(tmp_path / "run")
    assert is_held(run) is False
    with held(run):  # takes it for itself alone
        assert is_held(run) is True
        assert is_held(run) is True


def test_a_folder_without_a_lock_tells_nothing(tmp_path):
    assert is_held(tmp_path) is None
