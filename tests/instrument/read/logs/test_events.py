"""TensorBoard's event files, written by torch's SummaryWriter as the Trainer's callback does."""

from __future__ import annotations

import sys

import pytest
from lora_train.instrument.read.history import SourceError
from lora_train.instrument.read.logs import read_history

pytest.importorskip("tensorboard", reason="tensorboard is an optional extra")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from torch.utils.tensorboard import SummaryWriter

    out = tmp_path_factory.mktemp("out")
    with SummaryWriter(str(out / "runs" / "Jan01_host")) as writer:
        for step, loss in ((10, 1.5), (20, float("nan"))):
            writer.add_scalar("train/loss", loss, step)
            writer.add_scalar("train/learning_rate", 0.25 / step, step)
            writer.add_scalar("train/epoch", step / 100, step)
        writer.add_scalar("eval/loss", 1.75, 20)
        writer.add_scalar("eval/accuracy", 0.5, 20)
        writer.add_scalar("train/train_loss", 9.0, 20)
        writer.add_scalar("train/train_runtime", 3.0, 20)
        writer.add_text("args", "{}")
    return out


@pytest.mark.parametrize("name", ["", "runs/Jan01_host", "file"])
def test_scalars_of_a_file_or_of_a_folder(folder, name):
    source = next(folder.glob("runs/*/events*")) if name == "file" else folder / name
    history = read_history(source)
    assert history.steps["step"].tolist() == [10, 20]
    assert history.steps["loss"].tolist() == pytest.approx([1.5, float("nan")], nan_ok=True)
    assert history.steps["learning_rate"].tolist() == pytest.approx([0.025, 0.0125])  # float32 in the file
    assert history.evals[["step", "eval_loss", "eval_accuracy"]].values.tolist() == [[20, 1.75, 0.5]]
    assert history.task == "seq_cls"
    assert history.summary["train_runtime"] == 3.0


def test_a_cut_file_is_read_as_far_as_it_goes_or_refused(folder, tmp_path):
    data = next(folder.glob("runs/*/events*")).read_bytes()
    for n in (0, 5, len(data) // 2, len(data) - 3):
        path = tmp_path / "events.out.tfevents.1"
        path.write_bytes(data[:n])
        try:
            assert read_history(path).steps["step"].tolist()[:1] == [10]
        except SourceError as error:
            assert error.key in ("source.no_loss", "source.damaged_events")  # noqa: PT017


def test_without_the_package_the_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.backend.event_processing.event_accumulator", None)
    with pytest.raises(SourceError) as caught:
        read_history(folder)
    assert caught.value.key == "source.no_tensorboard"
    assert "lora-vitals[tensorboard]" in caught.value.values["command"]
