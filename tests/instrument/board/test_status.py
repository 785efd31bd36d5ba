"""Whether a run goes on: by its lock first, then by what it left."""

from __future__ import annotations

import time

import pyarrow as pa
import pytest
from lora_train.instrument.board.card import card_of
from lora_train.instrument.board.status import END_OF_STREAM, FRESH, identity, listed, status_of
from lora_train.instrument.read.lock import is_held

from .build import copy, held, tree

OLD = 10 * FRESH


def status(run, age: float = OLD) -> str:
    return status_of(run, card_of(run, "run", judged=False), is_held(run), age)


def test_a_held_lock_is_a_run_that_goes_on_and_looking_writes_nothing(tmp_path):
    run = copy(tmp_path / "run", lines=20)
    with held(run):
        before = tree(run)
        assert status(run) == "running"
        assert tree(run) == before
    assert status(run) == "crashed"


def test_ended_stopped_and_crashed(tmp_path):
    assert status(copy(tmp_path / "ended")) == "ended"
    assert status(copy(tmp_path / "collapsed", "v0_1_0/collapsed")) == "stopped"
    saved = copy(tmp_path / "saved", lines=20)
    step = card_of(saved, "run", judged=False)["step"]
    (saved / f"checkpoint-{step - 1}").mkdir()
    assert status(saved) == "crashed"
    (saved / f"checkpoint-{step}").mkdir()
    assert status(saved) == "stopped"


def test_a_checkpoint_at_the_last_step_of_a_killed_run_does_not_say_that_it_ended_in_order(tmp_path):
    run = copy(tmp_path / "run", lines=20)
    step = card_of(run, "run", judged=False)["step"]
    (run / f"checkpoint-{step}").mkdir()
    for file in (run / "stats").iterdir():
        file.unlink()
    stream = run / "stats" / "start-0.arrows"
    with pa.OSFile(str(stream), "wb") as sink, pa.ipc.new_stream(sink, pa.schema([("step", pa.int64())])):
        pass
    whole = stream.read_bytes()
    assert whole.endswith(END_OF_STREAM)
    assert status(run) == "stopped"
    stream.write_bytes(whole.removesuffix(END_OF_STREAM))
    assert status(run) == "crashed"


@pytest.mark.parametrize(("age", "expected"), [(1.0, "running"), (OLD, "unfinished")])
def test_without_a_lock_the_time_of_the_last_line_tells(tmp_path, age, expected):
    run = copy(tmp_path / "run", lines=20)
    (run / ".lock").unlink()
    assert is_held(run) is None
    assert status(run, age) == expected
    ended = copy(tmp_path / "ended")
    (ended / ".lock").unlink()
    assert status(ended, age) == "ended"


def test_a_lock_that_is_no_file_is_no_lock(tmp_path):
    for name, make in (("folder", lambda p: p.mkdir()), ("link", lambda p: p.symlink_to("/dev/zero"))):
        run = copy(tmp_path / name)
        (run / ".lock").unlink()
        make(run / ".lock")
        began = time.monotonic()
        assert is_held(run) in (None, False)
        assert time.monotonic() - began < 60  # does not wait for a pipe's other end


def test_the_system_lists_who_holds_a_lock(tmp_path):
    run = copy(tmp_path / "run")
    assert identity(tmp_path) is None
    known = identity(run)
    assert known is not None
    assert known[0] not in listed()
    with held(run):
        if not listed():
            pytest.skip("this system lists no locks")
        assert known[0] in listed()
