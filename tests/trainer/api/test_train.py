"""`train` from Python: what it returns, and that nothing of a run is left in the process, however it ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from lora_train import Run, Stopped, UserError, explain, train
from lora_train.trainer.loop import train as loop

from ...conftest import DATA, ROOT


def config(model: Path, out: Path, **training: Any) -> dict[str, Any]:
    return {
        "model": {"name_or_path": str(model)},
        "lora": {"r": 4, "lora_alpha": 8},
        "data": {"train": str(DATA), "format": "koalpaca", "limit": 20, "cache": False},
        "training": {
            "per_device_train_batch_size": 3, "learning_rate": 1e-3, "max_steps": 3, "logging_steps": 1,
            "output_dir": str(out), **training,
        },
    }  # fmt: skip


def test_it_trains_and_gives_the_run(tiny_models, tmp_path, capsys):
    given = config(tiny_models["llama"], tmp_path / "run")
    before = json.dumps(given)
    run = train(given, learning_rate=5e-4, lora={"r": 2})
    assert json.dumps(given) == before
    assert isinstance(run, Run)
    assert run.path == tmp_path / "run"
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 3
    assert run.metrics["loss"].tolist() == losses
    assert run.metrics["learning_rate"].iloc[0] == 5e-4
    assert run.stats(r"q_proj:lora_B\.grad$", ["norm"])["norm"].gt(0).all()
    assert run.sites.query("tensor == 'lora_A.grad'")["shape"].iloc[0][0] == 2
    assert run.explain()[0].topic == "overall"
    assert str(run.explain("en")) == str(explain(run, lang="en")) == str(explain(run.path, lang="en"))
    assert run.report().read_text().startswith("<!")
    assert "loss" in capsys.readouterr().out  # the lines of the log


def test_a_second_run_goes_beside_the_first_and_resume_goes_on(tiny_models, tmp_path):
    given = config(tiny_models["llama"], tmp_path / "run", save_steps=2)
    assert train(given).path == tmp_path / "run"
    assert train(given).path == tmp_path / "run-2"
    longer = train(given, resume="auto", max_steps=5)
    assert longer.path == tmp_path / "run-2"
    assert longer.metrics["step"].tolist() == [1, 2, 3, 4, 5]
    assert train(given, resume="auto", max_steps=5).path == tmp_path / "run-2"  # nothing left to do


def test_mistakes_are_told_all_at_once_and_with_their_place(tiny_models, tmp_path):
    given = config(tiny_models["llama"], tmp_path / "run", max_steps="three")
    with pytest.raises(UserError) as error:
        train(given, lora={"r": 0})
    text = str(error.value)
    assert "the configuration: training.max_steps" in text
    assert "a keyword of train(): lora.r" in text
    with pytest.raises(UserError, match=r"learning_rate"):
        train(given, learnig_rate=1e-3)
    with pytest.raises(UserError, match=r"nowhere\.yaml"):
        train(tmp_path / "nowhere.yaml")
    assert not (tmp_path / "run").exists()


class Fails(RuntimeError):
    pass


def ended_by(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """The second step ends the run."""
    step, seen = loop.train_step, []

    def train_step(components: Any, rows: Any) -> Any:
        seen.append(rows.step)
        if len(seen) == 2:
            if how == "an error":
                raise Fails("for the test")
            if how == "out of memory":
                raise torch.OutOfMemoryError("for the test")
            for _ in range(1 if how == "the stop button" else 2):
                os.kill(os.getpid(), signal.SIGINT)
        return step(components, rows)

    monkeypatch.setattr(loop, "train_step", train_step)


EXPECTED = {
    "an error": Fails, "out of memory": Fails, "the stop button": KeyboardInterrupt, "pressed twice": KeyboardInterrupt,
}  # fmt: skip


def test_the_stop_button_keeps_what_was_reached(tiny_models, tmp_path, monkeypatch):
    given = config(tiny_models["llama"], tmp_path / "run", max_steps=6)
    with monkeypatch.context() as patched:
        ended_by(patched, "the stop button")
        with pytest.raises(KeyboardInterrupt, match="resume"):
            train(given)
    assert (tmp_path / "run" / "checkpoint-2").is_dir()
    assert train(given, resume="auto").metrics["step"].tolist() == [1, 2, 3, 4, 5, 6]
    alone = train(config(tiny_models["llama"], tmp_path / "alone", max_steps=6))
    resumed = train(given, resume="auto").metrics["loss"].tolist()
    assert resumed == alone.metrics["loss"].tolist()


def test_nothing_is_left_of_a_run_however_it_ended():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/trainer/api/leftovers.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "4 passed" in done.stdout


def test_another_model_of_the_process_is_not_touched(tiny_models, tmp_path):
    """The same architecture, loaded before: it computes and is built as before."""
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_models["llama"])
    ids = torch.arange(4, 20)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
    train(config(tiny_models["llama"], tmp_path / "run"))
    assert not any("forward" in vars(module) or module._forward_hooks for module in model.modules())
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, before)


def test_a_disk_that_refuses_is_an_error(tiny_models, tmp_path, monkeypatch):
    def refuses(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    given = config(tiny_models["llama"], tmp_path / "run", on_write_error="stop")
    monkeypatch.setattr("lora_train.instrument.read.store.MetricsLog.write", refuses)
    with pytest.raises(Stopped, match=str(tmp_path / "run")):
        train(given)
