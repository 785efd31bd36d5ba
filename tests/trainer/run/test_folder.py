from __future__ import annotations

import json
import os

import pytest
import yaml
from lora_train.trainer.config.schema import Config
from lora_train.trainer.errors import UserError
from lora_train.trainer.run.folder import family, fresh_folder, refuse_pipes, write_config, write_env

CONFIG = Config.model_validate({"model": {"name_or_path": "o/m"}, "data": {"train": "o/d", "format": "text"}})


def make_run(folder) -> None:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").touch()


def test_a_second_run_goes_to_a_new_folder(tmp_path):
    base = tmp_path / "run"
    assert fresh_folder(str(base)) == base
    make_run(base)
    assert str(fresh_folder(str(base))) == f"{base}-2"
    make_run(tmp_path / "run-2")
    assert str(fresh_folder(str(base))) == f"{base}-3"
    # a folder without a run in it is free to use
    (tmp_path / "run-3").mkdir()
    assert str(fresh_folder(str(base))) == f"{base}-3"


def test_gaps_slashes_and_the_home_folder(tmp_path, monkeypatch):
    make_run(tmp_path / "run-2")
    assert fresh_folder(f"{tmp_path}/run/") == tmp_path / "run-3"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fresh_folder("~/new") == tmp_path / "new"


@pytest.mark.parametrize("name", [".lock", "env.json", "metrics.jsonl", "stats/0.arrow", "checkpoint-1/SHA256SUMS"])
def test_a_pipe_where_a_run_writes_is_named_and_never_waited_for(tmp_path, name):
    make_run(tmp_path / "run")
    refuse_pipes(tmp_path / "run")
    refuse_pipes(tmp_path / "nowhere")
    (tmp_path / "run" / "link").symlink_to("nothing")
    path = tmp_path / "run" / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    with pytest.raises(UserError, match=f"run cannot be written: it is not a regular file .*{name}"):
        refuse_pipes(tmp_path / "run")


def test_what_no_run_writes_is_not_looked_at(tmp_path):
    (tmp_path / ".git").mkdir()
    os.mkfifo(tmp_path / ".git" / "fsmonitor.ipc")
    os.mkfifo(tmp_path / "mine")
    refuse_pipes(tmp_path)


def test_runs_of_one_output_dir_are_a_family(tmp_path):
    for name in ("run", "run-2", "run-10", "running"):
        make_run(tmp_path / name)
    assert [path.name for path in family(str(tmp_path / "run"))] == ["run", "run-2", "run-10"]


def test_resolved_config_is_written_and_an_earlier_one_kept(tmp_path):
    write_config(tmp_path, CONFIG)
    write_config(tmp_path, CONFIG)
    assert Config.model_validate(yaml.safe_load((tmp_path / "config.yaml").read_text())) == CONFIG
    other = CONFIG.model_copy(update={"lora": CONFIG.lora.model_copy(update={"r": 2})})
    write_config(tmp_path, other)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["lora"]["r"] == 2
    assert yaml.safe_load((tmp_path / "config.0.yaml").read_text())["lora"]["r"] == 8
    assert len(list(tmp_path.iterdir())) == 2


def test_environment_names_versions_and_hardware(tmp_path):
    write_env(tmp_path, {"model": "한국어"})
    env = json.loads((tmp_path / "env.json").read_text())
    assert env["model"] == "한국어"
    assert env["versions"]["torch"].startswith("2.")
    assert env["schema_version"] == 1
    assert env["threads"] >= 1
