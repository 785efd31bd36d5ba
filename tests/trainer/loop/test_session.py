"""One way to save, whoever asks: the loop, a run that ends, a collapse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lora_train.instrument.read.eval_rows import EvaluationRows, read_rows
from lora_train.trainer.config.settings import with_settings
from lora_train.trainer.console import Console
from lora_train.trainer.errors import Stopped
from lora_train.trainer.loop.checkpoint import checkpoints
from lora_train.trainer.loop.run_log import RunLog
from lora_train.trainer.loop.session import Session, Stop
from lora_train.trainer.loop.train import train
from lora_train.trainer.model.load import trainable
from lora_train.trainer.saved.state import Progress
from lora_train.trainer.saved.sums import ADAPTER

from .test_train import make_components, make_config


@pytest.fixture(scope="module")
def components(tiny_models):
    return make_components(make_config(tiny_models["llama"], save_total_limit=1, max_steps=2, save_steps=1))


def session_of(components, run_dir: Path, **settings: object) -> Session:
    config = with_settings(components.config, {f"training.{key}": value for key, value in settings.items()})
    own, progress, console = replace(components, config=config), Progress(step=1), Console()
    return Session(own, progress, run_dir, RunLog(None, console, own, progress), console, Stop())


def test_a_checkpoint_replaces_the_oldest_but_the_last_one_of_a_start_does_not(components, tmp_path):
    session = session_of(components, tmp_path)
    session.save()
    session.progress.step = 2
    session.save()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-2"]
    assert session.write_checkpoint(replace(session.progress, step=3), last=True) == tmp_path / "checkpoint-3"
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-3"]
    assert session.progress.save_seconds_total > 0


@pytest.mark.parametrize("policy", ["continue", "stop"])
def test_a_disk_that_refuses_leaves_no_half_and_the_setting_decides(components, tmp_path, monkeypatch, capsys, policy):
    def full(tensors: object, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lora_train.trainer.loop.checkpoint.save_file", full)
    session = session_of(components, tmp_path, on_write_error=policy)
    if policy == "stop":
        with pytest.raises(Stopped, match="No space left on device"):
            session.save()
    else:
        session.save()
        assert "the checkpoint could not be written" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    # a run that ends with it says so and ends as it was going to
    assert session.write_checkpoint(last=True) is None
    assert "the checkpoint could not be written" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_state_that_is_not_finite_is_refused_and_said(components, tmp_path, capsys):
    weight = next(iter(trainable(components.model).values()))
    good = weight.detach().clone()
    with torch.no_grad():
        weight[0, 0] = float("nan")
    try:
        assert session_of(components, tmp_path).write_checkpoint() is None
    finally:
        with torch.no_grad():
            weight.copy_(good)
    assert "holds a value that is not finite" in capsys.readouterr().out
    assert not (tmp_path / "checkpoint-1" / ADAPTER).exists()


def test_a_session_trains_to_its_last_step_and_leaves_no_recorder_behind(components, tmp_path, capsys):
    session = session_of(components, tmp_path)
    with session:
        assert train(session) is None
    assert session.progress.step == 2
    assert "step 2/2" in capsys.readouterr().out
    assert all(group.slot is None for group in components.patched.groups)


def test_rows_whose_evaluation_is_not_finite_are_named_at_the_first_one(components, tmp_path, capsys):
    session = session_of(components, tmp_path)
    number = np.arange(4, dtype="int32")
    sums = np.array([3.0, np.nan, 2.0, np.inf])
    rows = EvaluationRows(number + 10, sums, number + 1, number.astype("uint64"))
    session.keep_rows(2, rows)
    session.keep_rows(4, rows)
    said = [line for line in capsys.readouterr().out.splitlines() if "NaN or inf" in line]
    assert len(said) == 1
    assert "step 2: the evaluation gave NaN or inf for 2 of 4 rows (11, 13)" in said[0]
    kept = read_rows(tmp_path, 4)
    assert kept is not None
    assert np.array_equal(kept.loss_sum, sums, equal_nan=True)
