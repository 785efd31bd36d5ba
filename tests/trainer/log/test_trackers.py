"""Trackers get the numbers of the log under the names of metrics.jsonl; one that fails costs nothing else."""

from __future__ import annotations

import importlib
import io
import json
import sqlite3
import struct
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from lora_train.instrument.read.load import load_run
from lora_train.instrument.read.store import read_metrics
from lora_train.trainer.config.names import is_installed, trackers_wanted
from lora_train.trainer.config.schema import Config
from lora_train.trainer.log.trackers import Trackers, flat
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ..test_cli import steps_of, write_config


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
    layer = {event.step: event.value for event in events.Scalars("grad_norm_by_layer/model.layers.1")}
    stored = load_run(run).stats(r"^model\.layers\.1\..*:lora_[AB]\.grad$", ["norm"], [2, 4, 6])
    squares = (stored["norm"] ** 2).groupby(stored["step"]).sum()
    assert layer == pytest.approx((squares**0.5).to_dict(), rel=1e-6)
    evaluations = {event.step: event.value for event in events.Scalars("eval_loss")}
    assert evaluations == pytest.approx(
        {row["step"]: row["eval_loss"] for row in read_metrics(run) if "eval_loss" in row}, rel=1e-6
    )


# What a tracker has stored: project, name of the run (None where it keeps none), and (key, step, value).
Stored = tuple[str | None, str | None, list[tuple[str, int, float]]]


def clearml_stored(folder: Path) -> Stored:
    (session,) = (folder / ".clearml" / "cache" / "offline").glob("*/")
    task = json.loads((session / "task.json").read_text())
    rows = [row for line in (session / "metrics.jsonl").read_text().splitlines() for row in json.loads(line)]
    prefix = {"train": "", "eval": "eval_"}  # accelerate splits the key
    values = [(prefix.get(row["variant"], "?") + row["metric"], row["iter"], row["value"]) for row in rows]
    return task["project_name"], task["name"], values


def comet_stored(folder: Path) -> Stored:
    (archive,) = (folder / "comet").glob("*.zip")
    with zipfile.ZipFile(archive) as opened:
        project = json.loads(opened.read("experiment.json"))["project_name"]
        messages = [json.loads(line) for line in opened.read("messages.json").splitlines()]
    others = [message["payload"] for message in messages if message["type"] == "log_other"]
    metrics = [message["payload"]["metric"] for message in messages if message["type"] == "metric_msg"]
    (name,) = [other["value"] for other in others if other["key"] == "Name"]
    return project, name, [(metric["metricName"], metric["step"], metric["metricValue"]) for metric in metrics]


def dvclive_stored(folder: Path) -> Stored:
    values = []
    for file in (folder / "dvclive" / "plots" / "metrics").glob("*.tsv"):
        _, *rows = [line.split("\t") for line in file.read_text().splitlines()]
        values += [(file.stem, int(step), float(value)) for step, value in rows]
    return None, None, values


def mlflow_stored(folder: Path) -> Stored:
    from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name != 'Default'")
    (run,) = client.search_runs([experiment.experiment_id])
    rows = [row for key in run.data.metrics for row in client.get_metric_history(run.info.run_id, key)]
    return experiment.name, run.info.run_name, [(row.key, row.step, row.value) for row in rows]


def trackio_stored(folder: Path) -> Stored:
    (database,) = (folder / "trackio").glob("*.db")
    rows = sqlite3.connect(database).execute("select run_name, step, metrics from metrics").fetchall()
    values = [(key, step, value) for _, step, numbers in rows for key, value in json.loads(numbers).items()]
    return database.stem, rows[0][0], values


def log_records(file: Path) -> Iterator[bytes]:
    """The records of LevelDB's log format, in which wandb and swanlab write, after their header of 7 bytes."""
    content, at, record = file.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if (rest := 32768 - at % 32768) < 7:
            at += rest
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def swanlab_stored(folder: Path) -> Stored:
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record  # pyright: ignore[reportMissingImports]

    (file,) = (folder / "swanlog").glob("run-*/*.swanlab")
    records = [Record.FromString(record) for record in log_records(file)]
    (begun,) = [record.start for record in records if record.HasField("start")]
    scalars = [record.scalar for record in records if record.HasField("scalar")]
    return begun.project, begun.name, [(scalar.key, scalar.step, scalar.value.number) for scalar in scalars]


def wandb_stored(folder: Path) -> Stored:
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportMissingImports]

    (file,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    records = [Record.FromString(record) for record in log_records(file)]
    begun = next(record.run for record in records if record.HasField("run"))
    histories = [record.history for record in records if record.HasField("history")]
    items = [
        (item.nested_key[0], line.step.num, json.loads(item.value_json)) for line in histories for item in line.item
    ]
    return begun.project, begun.display_name, items


@pytest.mark.parametrize(
    ("name", "stored", "environment"),
    [
        ("clearml", clearml_stored, {"CLEARML_OFFLINE_MODE": "1"}),
        ("comet_ml", comet_stored, {"COMET_START_ONLINE": "0", "COMET_OFFLINE_DIRECTORY": "comet"}),
        ("dvclive", dvclive_stored, {}),
        ("mlflow", mlflow_stored, {"MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"}),
        ("swanlab", swanlab_stored, {"SWANLAB_MODE": "offline"}),
        ("trackio", trackio_stored, {"TRACKIO_DIR": "trackio"}),
        ("wandb", wandb_stored, {"WANDB_MODE": "offline"}),
    ],
)
def test_a_tracker_offline_has_what_the_log_has(cli, tiny_models, tmp_path, name, stored, environment):
    if not is_installed(name):  # importorskip would import it, and comet_ml patches what it finds in the process
        pytest.skip(f"needs {name}, which is installed by those who use it")
    config = write_config(
        tmp_path, tiny_models["llama"], max_steps=6, logging_steps=2, eval_strategy="steps", eval_steps=3,
        report_to=name, run_name="mine",
    )  # fmt: skip
    folder = tmp_path / "here"
    folder.mkdir()
    result = cli("--config", config, "data.eval_fraction=0.1", cwd=folder, env={"HOME": str(folder), **environment})
    assert result.returncode == 0, result.stderr
    assert "left out from here on" not in result.stdout
    project, run_name, values = stored(folder)
    assert (project, run_name) == ((None, None) if name == "dvclive" else ("lora-train", "mine"))
    steps = {row["step"]: row["loss"] for row in steps_of(tmp_path / "run") if row["step"] % 2 == 0}
    assert {step: value for key, step, value in values if key == "loss"} == pytest.approx(steps, rel=1e-9)
    evaluations = {row["step"]: row["eval_loss"] for row in read_metrics(tmp_path / "run") if "eval_loss" in row}
    assert sorted(evaluations) == [3, 6]
    assert {step: value for key, step, value in values if key == "eval_loss"} == pytest.approx(evaluations, rel=1e-9)


class Fake:
    """A tracker of accelerate's kind."""

    requires_logging_directory = False

    def __init__(self, project: str, name: str):
        assert (project, name) == ("lora-train", "mine")

    def start(self) -> None:
        pass

    def store_init_configuration(self, values: dict) -> None:
        assert values["training.report_to"] == "wandb"

    def log(self, values: dict, step: int) -> None:
        raise ConnectionError("no network")

    def finish(self) -> None:
        raise AssertionError("was left out")


def trackers_with(kind: type, folder: Path, monkeypatch: pytest.MonkeyPatch, told: list[str]) -> Trackers:
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "wandb", kind)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return Trackers(make_config(folder, "wandb"), folder, told.append)


def test_a_tracker_that_fails_is_told_once_and_left_out(tmp_path, monkeypatch):
    told: list[str] = []
    trackers = trackers_with(Fake, tmp_path, monkeypatch, told)
    for step in (1, 2):
        trackers.log({"loss": 1.0}, step)
    trackers.finish()
    assert told == ["tracker wandb failed and is left out from here on: ConnectionError: no network"]


def test_a_tracker_that_asks_for_a_key_gets_none(tmp_path, monkeypatch):
    """wandb and swanlab ask on a terminal, where a run would wait for the answer."""

    class Asking(Fake):
        def start(self) -> None:
            input("key: ")

    terminal = io.StringIO("what the user types\n")
    monkeypatch.setattr("sys.stdin", terminal)
    told: list[str] = []
    trackers_with(Asking, tmp_path, monkeypatch, told).finish()
    assert sys.stdin is terminal
    assert told == ["tracker wandb failed and is left out from here on: EOFError: EOF when reading a line"]


def test_finite_numbers_are_sent(tmp_path, monkeypatch):
    sent: list[tuple[dict, int]] = []

    class Keeping(Fake):
        def log(self, values: dict, step: int) -> None:
            sent.append((values, step))

    trackers = trackers_with(Keeping, tmp_path, monkeypatch, [])
    trackers.log(
        {"step": 3, "loss": float("inf"), "grad_norm": float("nan"), "lr": 0.5, "skipped": True, "what": "-"}, 3
    )
    assert sent == [({"lr": 0.5, "skipped": 1}, 3)]
    assert type(sent[0][0]["skipped"]) is int


def make_config(folder: Path, report_to: str | list[str]) -> Config:
    sections = {"model": {"name_or_path": "o/m"}, "data": {"train": "o/d", "format": "text"}}
    training = {"report_to": report_to, "run_name": "mine", "output_dir": str(folder)}
    return Config.model_validate(sections | {"training": training})


def test_names_of_trackers(tmp_path):
    assert trackers_wanted("none") == []
    assert trackers_wanted(["tensorboard", "none", "tensorboard"]) == ["tensorboard"]
    assert "tensorboard" in trackers_wanted("all")
    values = flat(make_config(tmp_path, "none"))
    assert values["lora.r"] == 8
    assert values["precision.fp32_modules"] == "[]"


def test_a_folder_is_not_an_installed_tracker(tmp_path, monkeypatch):
    """An offline wandb leaves ./wandb, and `python -m` looks for modules in the folder it is started in."""
    (tmp_path / "leftovers").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not is_installed("leftovers")
    (tmp_path / "leftovers" / "__init__.py").touch()
    importlib.invalidate_caches()
    assert is_installed("leftovers")
