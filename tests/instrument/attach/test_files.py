"""A disk that fills under a training that is only watched."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_train.instrument import Instrument, InstrumentCallback, load_run
from lora_train.instrument.attach.files import RunFiles
from lora_train.instrument.judge.explain import explain, read_history
from transformers import TrainerCallback

from .test_callback import lora, overflowing
from .test_peers import is_bare, trainer

STOPPED = "from here on nothing is recorded"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path) -> None:
    """Until not a byte is left."""
    with (disk / "others").open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"x" * 4096):
            pass


class Fills(TrainerCallback):
    """Somebody else's checkpoints, at one moment of a training."""

    def __init__(self, disk: Path, when: str):
        self.disk, self.when = disk, when

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.when == "before":
            fill(self.disk)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.when == f"step {state.global_step}":
            fill(self.disk)

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.when == "evaluation":
            fill(self.disk)


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("when", ["before", "step 1", "evaluation"])
def test_a_full_disk_ends_the_recording_alone(tiny_models, tmp_path, small_disk, capsys, when, fuse):
    training = trainer(lora(tiny_models["llama"]), tmp_path / "out", max_steps=6, eval_strategy="steps", eval_steps=3)
    for callback in (Fills(small_disk, when), InstrumentCallback(small_disk / "run", fuse=fuse)):
        training.add_callback(callback)
    training.train()
    assert training.state.global_step == 6
    assert is_bare(training.model, training)
    said = capsys.readouterr().out
    assert said.count("nothing is recorded") == 1
    assert "No space left on device" in said
    if when != "before":
        # what was written before can be read, and what the file's last page had room for
        kept = {"step 1": 1, "evaluation": 3}[when]
        steps = load_run(small_disk / "run").metrics()["step"].tolist()
        assert steps == list(range(1, len(steps) + 1))
        assert len(steps) >= kept
        assert explain(read_history(small_disk / "run"))


def test_a_collapse_is_caught_on_a_full_disk(tiny_models, tmp_path, small_disk, capsys):
    model = overflowing(tiny_models["llama"], torch.float16)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    training = trainer(model, tmp_path / "out")
    callback = InstrumentCallback(small_disk / "run")
    training.add_callback(callback)
    training.add_callback(type("Late", (Fills,), {"on_step_begin": lambda *_, **__: fill(small_disk)})(small_disk, ""))
    training.train()
    assert training.state.global_step == 1
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters() if p.requires_grad)
    said = capsys.readouterr().out
    assert said.count(STOPPED) == 1
    assert "COLLAPSE at step 1: overflow in the forward pass, model.layers.1.mlp" in said


def test_a_loop_of_ones_own_goes_on(tiny_models, small_disk, capsys):
    model = lora(tiny_models["llama"])
    ids = torch.arange(4, 28).view(2, 12)
    with Instrument(model, small_disk / "run") as instrument:
        fill(small_disk)
        for _ in range(3):
            with instrument.step() as step:
                step.begin_micro_batch()
                loss = model(input_ids=ids, labels=ids).loss
                step.micro_batch(loss, {"input_ids": ids, "labels": ids})
                loss.backward()
            assert step.finite
            assert step.loss == pytest.approx(float(loss.detach()), rel=1e-6)
    assert capsys.readouterr().out.count(STOPPED) == 1


def test_a_file_that_takes_nothing_is_said_once(tmp_path, capsys):
    """/dev/full refuses every byte."""
    (tmp_path / "run").mkdir()
    files = RunFiles(tmp_path / "run", [], {"env.json": "{}"})
    files.line({"step": 1})
    files._metrics._file.close()
    files._metrics._file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115
    for step in (2, 3):
        files.line({"step": step})
        files.statistics(step, torch.zeros(0, 12), None)
        files.diagnosis(step, {})
    files.close()
    said = capsys.readouterr().out
    assert said.count(STOPPED) == 1
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1]
