"""Run folders and checkpoints of version 0.1.0: read, gone on from, and replayed."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from lora_train.instrument import load_run
from lora_train.instrument.judge.explain import explain, read_history
from lora_train.instrument.read.store import read_metrics
from lora_train.trainer.cli import main

from .earlier import LOUD_ROW, RECORDED, prepare

# Another machine's kernels add in another order: products of 48 terms, two layers, three steps of Adam. 0.1.0's own
# losses lie 1e-3 apart from step to step.
SAME = 1e-5


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("v0_1_0")
    prepare(folder)
    return folder


@pytest.fixture
def work(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the model, the rows and copies of both runs, to be worked in."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    shutil.copytree(RECORDED, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    return tmp_path


def losses(run: str, start: int) -> dict[int, float | None]:
    rows = read_metrics(Path(run), start)
    return {row["step"]: row["loss"] for row in rows if "learning_rate" in row}


def replayed(arguments: Sequence[str], capsys: pytest.CaptureFixture) -> tuple[int, str]:
    capsys.readouterr()
    return main(["replay", *arguments]), capsys.readouterr().out


def test_a_run_folder_is_read(work):
    run = load_run(work / "healthy")
    assert run.metrics().dropna(subset=["loss"])["step"].tolist() == list(range(1, 9))
    frame = run.stats(r"^model\.layers\.1\.mlp\.down_proj:out$", ["norm", "absmax", "n_nan"])
    assert frame["step"].tolist() == list(range(1, 9))
    assert (frame["absmax"] > 0).all()
    assert frame["n_nan"].sum() == 0
    assert run.exponents("model.layers.1.mlp.down_proj:out", step=6) is not None
    outcome = [finding.key for finding in explain(read_history(work / "collapsed")) if finding.topic == "outcome"]
    assert outcome[0] == "explain.stopped"


def test_a_checkpoint_is_gone_on_from_and_gives_what_the_run_gave(work):
    recorded = losses("healthy", 0)
    assert main(["--config", "healthy.json", "--resume", "auto"]) == 0
    resumed = losses("healthy", 1)
    assert list(resumed) == [5, 6, 7, 8]
    assert resumed == pytest.approx({step: recorded[step] for step in resumed}, rel=SAME)
    state = json.loads((work / "healthy" / "checkpoint-8" / "trainer_state.json").read_text())
    assert [step for step, _ in state["evaluations"]] == [4, 8]


def test_a_collapsed_run_goes_on_as_its_screen_said(work):
    change = "precision.fp32_modules=[model.layers.1.mlp]"
    assert main(["--config", "collapsed/config.yaml", "--resume", "collapsed/checkpoint-5", change]) == 0
    assert list(losses("collapsed", 1)) == [6, 7, 8]
    assert None not in losses("collapsed", 1).values()


def test_a_step_is_replayed_from_a_checkpoint(work, capsys):
    code, out = replayed(["healthy", "--step", "6"], capsys)
    assert code == 0
    assert "step 6 from healthy/checkpoint-4" in out
    recorded, now = map(float, re.findall(r"\d+\.\d{3,}", out)[:2])
    assert now == pytest.approx(recorded, rel=SAME)
    assert "recorded statistics are equal to the last bit" in out or "largest relative deviation" in out


def test_a_step_is_replayed_from_its_incident(work, capsys):
    (work / "rows.jsonl").write_text("")  # the incident has the rows
    code, out = replayed(["collapsed", "--step", "6"], capsys)
    assert code == 3
    assert "from collapsed/incidents/step-6" in out
    assert "forward_overflow in the forward pass: model.layers.1.mlp" in out
    assert re.search(rf"rows_alone +\[{LOUD_ROW}\]", out)
    code, out = replayed(["collapsed", "--step", "6", "--set", "precision.fp32_modules=[model.layers.1.mlp]"], capsys)
    assert code == 0
    assert "every gradient is finite" in out
