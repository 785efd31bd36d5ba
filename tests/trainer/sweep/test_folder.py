"""Claims: who takes a trial, what a later attempt takes over, which attempt counts."""

from __future__ import annotations

import threading

import pytest
import torch
from lora_train.trainer.config.schema import Config
from lora_train.trainer.saved.state import Progress, state_text
from lora_train.trainer.saved.sums import write_sums
from lora_train.trainer.sweep.folder import Attempt, attempts, inherit, newest
from safetensors.torch import save_file

from .build import BASE


def checkpoint(run, step: int) -> None:
    folder = run / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    for name in ("adapter_model.safetensors", "optimizer.safetensors"):
        save_file({"a": torch.ones(2)}, folder / name)
    (folder / "trainer_state.json").write_text(
        state_text(Progress(step=step), Config.model_validate(BASE).model_dump())
    )
    write_sums(folder)


def test_a_claim_is_had_once(tmp_path):
    attempt, won, gate = Attempt(tmp_path, 3), [], threading.Barrier(16)

    def try_it() -> None:
        gate.wait()
        won.append(attempt.take())

    threads = [threading.Thread(target=try_it) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == [False] * 15 + [True]


def test_the_highest_attempt_counts(tmp_path):
    for trial, number in ((0, 1), (0, 2), (0, 10), (1, 1), (1234, 1)):
        assert Attempt(tmp_path, trial, number).take()
    (tmp_path / "claims" / "notes").mkdir()
    found = attempts(tmp_path)
    assert {trial: one.name for trial, one in found.items()} == {0: "000.10", 1: "001", 1234: "1234"}
    assert attempts(tmp_path / "none") == {}
    Attempt(tmp_path, 0, 2).end({"ended": "done"})
    assert found[0].outcome() is None  # what a superseded one says is not heard


def test_a_beat_does_not_wait_for_the_disk(tmp_path, monkeypatch):
    synced: list[int] = []
    monkeypatch.setattr("os.fsync", synced.append)
    attempt = Attempt(tmp_path, 0)
    attempt.take()
    attempt.beat(7)
    assert (attempt.pulse(), synced) == ("7", [])
    attempt.end({"ended": "done"})
    assert len(synced) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00"])
def test_a_torn_outcome_is_none(tmp_path, text):
    attempt = Attempt(tmp_path, 0)
    attempt.take()
    (attempt.claim / "outcome.json").write_text(text)
    assert attempt.outcome() is None


def test_a_later_attempt_goes_on_from_the_furthest_whole_checkpoint(tmp_path):
    first, second, third = (Attempt(tmp_path, 0, number) for number in (1, 2, 3))
    checkpoint(first.run, 10)
    checkpoint(first.run, 20)
    (first.run / "checkpoint-20" / "adapter_model.safetensors").write_bytes(b"torn")
    (first.run / "metrics.jsonl").write_text("{}\n")
    (first.run / ".lock").touch()
    (first.run / "checkpoint-30.tmp").mkdir()
    second.run.mkdir()
    assert (newest(first.run), newest(second.run)) == (10, -1)
    inherit(third)
    copied = sorted(str(path.relative_to(third.run)) for path in third.run.iterdir())
    assert copied == ["checkpoint-10", "checkpoint-20", "metrics.jsonl"]
    (third.run / "metrics.jsonl").write_text("changed")
    assert (first.run / "metrics.jsonl").read_text() == "{}\n"


def test_without_a_checkpoint_it_begins_anew(tmp_path):
    first = Attempt(tmp_path, 0)
    first.run.mkdir(parents=True)
    (first.run / "metrics.jsonl").write_text("{}\n")
    inherit(first.following)
    assert not first.following.run.exists()
