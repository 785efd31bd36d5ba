"""Trackers get the numbers of the log under the names of metrics.jsonl; one that fails costs nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from lora_train.instrument.store import read_metrics
from lora_train.trainer.config import Config
from lora_train.trainer.read_config import trackers_wanted
from lora_train.trainer.trackers import Trackers, flat
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from .test_cli import steps_of, write_config


def test_tensorboard_has_what_the_log_has(cli, tiny_models, tmp_path):
    config = write_config(
        tmp_path, tiny_models["llama"], max_steps=6, logging_steps=2, eval_strategy="steps", eval_steps=3,
        report_to="tensorboard", run_name="mine",
    )  # fmt: skip
    result = cli("--config", config, "data.eval_fraction=0.1")
    assert result.returncode == 0, result.stderr
    run = tmp_path / "run"
    events = EventAccumulator(str(run / "trackers" / "mine"))
    events.Reload()
    loss = {event.step: event.value for event in events.Scalars("loss")}
    expected = {row["step"]: row["loss"] for row in steps_of(run) if row["step"] % 2 == 0}
    assert loss == pytest.approx(expected, rel=1e-6)
    assert {"grad_norm", "learning_rate", "loss_scale", "tokens_per_second"} <= set(events.Tags()["scalars"])
    evaluations = {event.step: event.value for event in events.Scalars("eval_loss")}
    assert evaluations == pytest.approx(
        {row["step"]: row["eval_loss"] for row in read_metrics(run) if "eval_loss" in row}, rel=1e-6
    )


def test_a_tracker_that_fails_is_told_once_and_left_out(tmp_path, monkeypatch):
    class Failing:
        requires_logging_directory = False

        def __init__(self, run_name: str):
            self.name = run_name

        def start(self) -> None:
            pass

        def store_init_configuration(self, values: dict) -> None:
            assert values["training.report_to"] == "wandb"

        def log(self, values: dict, step: int) -> None:
            raise ConnectionError("no network")

        def finish(self) -> None:
            raise AssertionError("was left out")

    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "wandb", Failing)
    told: list[str] = []
    trackers = Trackers(make_config(tmp_path, "wandb"), tmp_path, told.append)
    for step in (1, 2):
        trackers.log({"loss": 1.0}, step)
    trackers.finish()
    assert told == ["tracker wandb failed and is left out from here on: ConnectionError: no network"]


def make_config(folder: Path, report_to: str | list[str]) -> Config:
    sections = {"model": {"name_or_path": "o/m"}, "data": {"train": "o/d", "format": "text"}}
    return Config.model_validate(sections | {"training": {"report_to": report_to, "output_dir": str(folder)}})


def test_names_of_trackers(tmp_path):
    assert trackers_wanted("none") == []
    assert trackers_wanted(["tensorboard", "none", "tensorboard"]) == ["tensorboard"]
    assert "tensorboard" in trackers_wanted("all")
    values = flat(make_config(tmp_path, "none"))
    assert values["lora.r"] == 8
    assert values["precision.fp32_modules"] == "[]"
