"""The real command on a tiny model: the table, the advice, a worker that is killed, and what is refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from lora_train.trainer.errors import UserError
from lora_train.trainer.sweep.command import Table, own_code, run
from lora_train.trainer.sweep.cost import measured
from lora_train.trainer.sweep.folder import Attempt
from lora_train.trainer.sweep.plan import write_study
from lora_train.trainer.sweep.study_file import RATE, read_study_file

from ...conftest import COMMAND_ENVIRONMENT, DATA, ROOT
from .build import BASE, begun, written
from .test_worker import results, until


def tiny(folder: Path, model: Path, **values) -> Path:
    folder.mkdir()
    base = {
        "model": {"name_or_path": str(model)},
        "lora": {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"},
        "data": {"train": str(DATA), "eval": str(DATA), "format": "koalpaca", "cutoff_len": 64, "limit": 16,
                 "eval_limit": 8},
        "training": {"per_device_train_batch_size": 2, "eval_steps": 10, "save_steps": 5, "seed": 3},
    }  # fmt: skip
    own = {"base": base, "nuisance": {RATE: [1.0e-3, 1.0e-2]}, "lost_after_seconds": 2}
    return written(folder, **own | values)


def adapters(folder: Path) -> list[bytes]:
    """The adapters that the last attempts have written."""
    runs = [max((folder / "trials").glob(f"{name}*")) for name in ("000", "001")]
    return [(run / "adapter" / "adapter_model.safetensors").read_bytes() for run in runs]


def test_what_a_trial_costs_is_measured(tiny_models, tmp_path):
    study = read_study_file(tiny(tmp_path / "study", tiny_models["llama"], steps=10))
    seconds = measured(study)
    assert seconds is not None
    load, step = seconds
    assert load > 0 < step
    assert not study.folder.exists()
    (tmp_path / "empty").mkdir()  # a folder that holds no model
    lost = read_study_file(tiny(tmp_path / "lost", tmp_path / "empty", steps=10))
    with pytest.raises(UserError, match="a trial could not be run") as raised:
        measured(lost)
    assert str(tmp_path / "empty") in str(raised.value)


def test_a_study_from_its_trials_to_its_advice_and_the_same_with_a_killed_worker(cli, tiny_models, tmp_path):
    roots = []
    for name in ("whole", "killed"):
        study = read_study_file(tiny(tmp_path / name, tiny_models["llama"], steps=10))
        write_study(study)
        roots.append(study.folder)
    whole, killed = roots
    done = cli("sweep", whole)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["trial", "learning_rate", "eval_loss", "at", "step", "time", "end"]
    assert [line.split()[:2] for line in lines[1:3]] == [["000", "0.001"], ["001", "0.01"]]
    assert "study: 2 runs, of which 0 died" in lines
    assert any(line.startswith("P3   answered") for line in lines)

    command = [str(Path(sys.executable).with_name("lora-train")), "sweep", str(killed), "--worker"]
    worker = subprocess.Popen(command, cwd=ROOT, env=COMMAND_ENVIRONMENT, stdout=subprocess.DEVNULL)
    until(lambda: (Attempt(killed, 0).run / "checkpoint-5").is_dir(), "the first checkpoint")
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    after = cli("sweep", killed, "--worker")
    assert after.returncode == 0, after.stderr
    assert "study:" not in after.stdout  # advice is for who began it
    assert sorted(path.name for path in (killed / "claims").iterdir()) in (["000", "000.2", "001"], ["000", "001"])
    assert results(killed) == results(whole)
    assert adapters(killed) == adapters(whole)


def arguments(study: Path, yes: bool = False):
    from lora_train.trainer.cli import VERBS, _parser

    return _parser("sweep", VERBS["sweep"]).parse_args([str(study), *(["--yes"] if yes else [])])


def test_without_a_terminal_nobody_agrees(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("lora_train.trainer.sweep.cost.measured", lambda study: (10.0, 0.5))
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: SIM115
    with pytest.raises(UserError, match="nobody is there to agree to what the study costs"):
        run(arguments(written(tmp_path)))
    assert "about 0:02:00 with one worker: 0:00:30 for a trial" in capsys.readouterr().out  # 4 x (10 + 40 x 0.5)
    assert list(tmp_path.iterdir()) == [tmp_path / "asked.yaml"]


@pytest.mark.parametrize(("signals", "code"), [((), 130), ((signal.SIGTERM,), 143)])
def test_interrupted_while_it_asks_which_card_is_meant(tmp_path, monkeypatch, capsys, signals, code):
    def interrupted(study):
        raise KeyboardInterrupt(*signals)

    study, _ = begun(tmp_path)
    monkeypatch.setattr("lora_train.trainer.sweep.cost.ask", interrupted)
    monkeypatch.setattr("lora_train.trainer.sweep.command.ended_by", lambda number: 128 + number)  # it ignores signals
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert run(arguments(study.folder)) == code
    assert f"lora-train sweep {study.folder}" in capsys.readouterr().err


def test_a_folder_of_anothers_that_lets_code_run_is_refused(tmp_path):
    base = {**BASE, "model": {"name_or_path": "owner/model", "trust_remote_code": True}}
    study, _ = begun(tmp_path, base=base)
    with pytest.raises(UserError, match=r"lets code run .*\(model.trust_remote_code\)"):
        run(arguments(study.folder))
    calm = replace(study, base=BASE)
    assert own_code(calm) == ""
    assert own_code(replace(calm, fixed={"training.compute_metrics": "m:f"})) == "training.compute_metrics"


def test_what_is_no_study_is_said(tmp_path):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(BASE))
    with pytest.raises(UserError, match="holds no study"):
        run(arguments(tmp_path))
    with pytest.raises(UserError, match=r"asked\.yaml"):
        run(arguments(tmp_path / "asked.yaml"))


def test_a_row_says_what_a_trial_varied_and_why_it_died(monkeypatch):
    table = Table([RATE, "lora.r"], "eval_loss")
    attempt = Attempt(Path(), 3, 2)
    settings = {RATE: 1e-4, "lora.r": 8, "training.seed": 42}
    fine = {"ended": "done", "value": 1.23456, "step": 1200, "seconds": 61.0, "settings": settings}
    dead = {
        "ended": "memory",
        "value": None,
        "step": None,
        "settings": settings,
        "why": {"en": "too large", "ko": "큼"},
    }
    assert table.head().split() == ["trial", "learning_rate", "r", "eval_loss", "at", "step", "time", "end"]
    assert table.row(attempt, fine).split() == ["003.2", "1e-4", "8", "1.235", "1,200", "0:01:01", "done"]
    assert table.row(attempt, dead).endswith("0:00:00    out of memory: too large")
    monkeypatch.setenv("LORA_TRAIN_LANG", "ko")
    assert table.row(attempt, dead).endswith("메모리 부족: 큼")
