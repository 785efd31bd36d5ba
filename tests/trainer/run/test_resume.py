"""Which checkpoint a run goes on from, and what a damaged one costs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lora_train.trainer.cli import main
from lora_train.trainer.config.schema import Config
from lora_train.trainer.console import Console
from lora_train.trainer.errors import UserError
from lora_train.trainer.run.resume import changed_settings, find_checkpoint, moved_lengths, resume_from, with_heals
from lora_train.trainer.saved.state import Progress, state_text
from lora_train.trainer.saved.sums import STATE
from safetensors.numpy import save_file

from ..loop.test_train import make_components
from ..loop.test_train import make_config as make_components_config
from ..test_cli import write_config

QUIET = Console(silent=True)


def make_config(**training: Any) -> Config:
    sections = {"model": {"name_or_path": "o/m"}, "data": {"train": "o/d", "format": "text"}, "training": training}
    return Config.model_validate(sections)


def make_run(folder: Path, *steps: int, **state: Any) -> None:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").touch()
    for step in steps:
        checkpoint = folder / f"checkpoint-{step}"
        checkpoint.mkdir()
        for name in ("adapter_model", "optimizer"):
            save_file({"x": np.zeros(4, np.float32)}, checkpoint / f"{name}.safetensors")
        (checkpoint / STATE).write_text(state_text(Progress(step=step, **state), make_config().model_dump()))


def find(resume: str, output_dir: Path) -> Path | None:
    return find_checkpoint(resume, str(output_dir), QUIET)


def test_auto_takes_the_newest_checkpoint_of_the_newest_run(tmp_path):
    base = tmp_path / "run"
    assert find("auto", base) is None
    make_run(base, 5, 10)
    assert find("auto", base) == base / "checkpoint-10"
    make_run(tmp_path / "run-2", 3)
    make_run(tmp_path / "run-10")
    make_run(tmp_path / "running", 99)
    assert find("auto", base) == tmp_path / "run-2" / "checkpoint-3"


def test_a_run_or_a_checkpoint_by_name(tmp_path):
    make_run(tmp_path / "run", 5, 10)
    assert find(str(tmp_path / "run"), tmp_path) == tmp_path / "run" / "checkpoint-10"
    assert find(str(tmp_path / "run" / "checkpoint-5"), tmp_path) == tmp_path / "run" / "checkpoint-5"
    with pytest.raises(UserError, match="holds no checkpoint"):
        find(str(tmp_path / "nowhere"), tmp_path)


def damage(checkpoint: Path, name: str, how: str) -> None:
    path = checkpoint / name
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-9] if how == "torn" else b"[]")


@pytest.mark.parametrize("how", ["missing", "torn", "foreign"])
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.safetensors", "trainer_state.json"])
def test_a_damaged_file_in_the_newest_checkpoint_costs_that_checkpoint(tmp_path, capsys, name, how):
    make_run(tmp_path / "run", 5, 10)
    newest = tmp_path / "run" / "checkpoint-10"
    damage(newest, name, how)
    assert find_checkpoint("auto", str(tmp_path / "run"), Console()) == tmp_path / "run" / "checkpoint-5"
    assert "checkpoint-10 cannot be resumed" in capsys.readouterr().out
    with pytest.raises(UserError, match="checkpoint-10 is not a whole checkpoint"):
        find(str(newest), tmp_path)
    damage(tmp_path / "run" / "checkpoint-5", name, how)
    with pytest.raises(UserError, match="none of the 2 checkpoints"):
        find("auto", tmp_path / "run")


@pytest.mark.parametrize("empty", ["", " "])
def test_a_name_that_is_empty_does_not_begin_anew(tmp_path, monkeypatch, empty):
    """`--resume "$CHECKPOINT"` in a script that does not set it."""
    make_run(tmp_path / "run", 2)
    monkeypatch.chdir(tmp_path / "run")
    with pytest.raises(UserError, match="--resume: no folder is named"):
        find(empty, tmp_path / "run")
    assert resume_from(None, make_config(resume_from_checkpoint=empty)) == empty


def test_the_command_line_wins_over_the_configuration():
    assert resume_from(None, make_config()) is None
    assert resume_from(None, make_config(resume_from_checkpoint=True)) == "auto"
    assert resume_from(None, make_config(resume_from_checkpoint=False)) is None
    assert resume_from(None, make_config(resume_from_checkpoint="runs/x")) == "runs/x"
    assert resume_from("auto", make_config(resume_from_checkpoint="runs/x")) == "auto"


def test_what_healed_a_run_stays_and_what_changed_is_told(tmp_path):
    settings, before = {"data.skip_rows": [3]}, {"data.skip_rows": []}
    heal = {"step": 4, "kind": "bad_weight", "module": None, "settings": settings, "before": before}
    make_run(tmp_path / "run", 5, heals=[heal])
    checkpoint = tmp_path / "run" / "checkpoint-5"
    healed = with_heals(make_config(), checkpoint)
    assert healed.data.skip_rows == [3]
    assert changed_settings(checkpoint, make_config(max_steps=9, logging_steps=3)) == []
    assert changed_settings(checkpoint, make_config(learning_rate=1.0)) == ["training.learning_rate"]
    with pytest.raises(UserError, match="its state cannot be carried over"):
        changed_settings(checkpoint, make_config(optim="sgd"))


def test_the_length_is_named_where_it_moves_a_rate_that_is_to_come(tmp_path, tiny_models):
    def named(before: dict[str, Any], now: dict[str, Any], **schedule: Any) -> list[str]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        make_run(folder, 3)
        config = make_config(**before, **schedule).model_dump()
        checkpoint = folder / "checkpoint-3"
        (checkpoint / STATE).write_text(state_text(Progress(step=3), config))
        return moved_lengths(checkpoint, replace(components, **sizes(**now, **schedule)))

    def sizes(**training: Any) -> dict[str, Any]:
        config = make_config(**training)
        plan = components.plan
        return {"config": config, "n_steps": plan.n_steps(config.training.num_train_epochs, config.training.max_steps)}

    components = make_components(make_components_config(tiny_models["llama"]))
    assert named({"max_steps": 6}, {"max_steps": 12}) == ["training.max_steps"]
    assert named({"max_steps": 6}, {"max_steps": 6}) == []
    assert named({"max_steps": 3}, {"max_steps": 6}) == ["training.max_steps"]  # a whole run made longer
    assert named({"max_steps": 6}, {"max_steps": 2}) == ["training.max_steps"]  # over, after more steps than it has
    assert named({"num_train_epochs": 1}, {"num_train_epochs": 2}) == ["training.num_train_epochs"]
    assert named({"max_steps": 6}, {"num_train_epochs": 2}) == ["training.max_steps", "training.num_train_epochs"]
    assert named({"max_steps": 6}, {"max_steps": 12}, lr_scheduler_type="constant") == []
    warm_up = {"lr_scheduler_type": "constant_with_warmup"}
    assert named({"max_steps": 6}, {"max_steps": 12}, **warm_up, warmup_steps=2) == []
    assert named({"max_steps": 6}, {"max_steps": 12}, **warm_up, warmup_ratio=0.6) == ["training.max_steps"]


def test_a_checkpoint_with_a_value_that_is_not_finite_is_passed_over(tmp_path, capsys):
    make_run(tmp_path / "run", 5, 10)
    weights = {"x": np.array([1.0, np.nan], np.float32)}
    save_file(weights, tmp_path / "run" / "checkpoint-10" / "adapter_model.safetensors")
    assert find_checkpoint("auto", str(tmp_path / "run"), Console()) == tmp_path / "run" / "checkpoint-5"
    assert "checkpoint-10 cannot be resumed (adapter_model.safetensors: x holds" in capsys.readouterr().out
    with pytest.raises(UserError, match="holds values that are not finite"):
        find(str(tmp_path / "run" / "checkpoint-10"), tmp_path)


def test_every_start_from_one_checkpoint_is_kept_and_numbered(tiny_models, tmp_path, capsys):
    config = write_config(tmp_path, tiny_models["llama"], max_steps=4, save_steps=2)
    run = tmp_path / "run"
    assert main(["--config", str(config)]) == 0
    for length in (6, 5, 4):
        arguments = [f"training.max_steps={length}", "--resume", str(run / "checkpoint-2")]
        assert main(["--config", str(config), *arguments]) == 0
        text = capsys.readouterr().out
        assert ("the run is not the one that was started: training.max_steps" in text) == (length != 4)
    starts = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["start"] for row in starts if row.get("step") == 3] == [0, 1, 2, 3]
    kept = sorted(path.name for path in run.iterdir() if ".start-" in path.name)
    assert kept == [
        "adapter.start-0", "adapter.start-1", "adapter.start-2", "checkpoint-4.start-0", "checkpoint-4.start-0.1",
        "checkpoint-4.start-0.2", "checkpoint-5.start-0", "checkpoint-6.start-0",
    ]  # fmt: skip
    assert not list(run.rglob("*.tmp"))
