"""The verb: text in both languages, JSON, and what is no run."""

from __future__ import annotations

import json
import shutil
from argparse import Namespace

import pytest
from lora_train.trainer.errors import UserError
from lora_train.trainer.verbs.advise import run

from ...conftest import ROOT

RUNS = ROOT / "tests" / "runs"


def asked(*sources, as_json: bool = False, lang: str = "en") -> Namespace:
    return Namespace(sources=list(sources), json=as_json, lang=lang)


def test_two_runs_are_advised_on(capsys):
    assert run(asked(RUNS / "healthy", RUNS / "overfitting")) == 0
    out = capsys.readouterr().out
    assert out.startswith("study: 2 runs, of which 0 died\n")
    assert "P3   against       The runs have from 120 to 150 steps" in out
    assert "P14  not answered  Which run is best is not asked. The evaluations are not comparable" in out
    assert run(asked(RUNS / "healthy", RUNS / "overfitting", lang="ko")) == 0
    assert "실행 길이가 120스텝부터 150스텝까지" in capsys.readouterr().out


def test_json_is_a_list_of_rules(capsys):
    run(asked(RUNS / "overfitting", as_json=True))
    found = json.loads(capsys.readouterr().out)
    assert all(list(one) == ["rule", "verdict", "evidence", "trials", "next"] for one in found)
    verdicts = {one["rule"]: one["verdict"] for one in found}
    assert (verdicts["P2"], verdicts["P19"]) == ("not answered", "against")
    assert [one["rule"] for one in found] == sorted(verdicts, key=lambda rule: int(rule[1:]))


def test_the_checkpoint_nearest_to_the_best_step_is_named(tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(RUNS / "overfitting", folder)
    run(asked(folder))
    assert "no checkpoint was found" in capsys.readouterr().out
    (folder / "checkpoint-120").mkdir()
    run(asked(folder))
    assert "training.keep_best=3" in capsys.readouterr().out  # it is long past the best
    (folder / "checkpoint-30").mkdir()
    run(asked(folder))
    out = capsys.readouterr().out
    assert "checkpoint-30 lies there" in out
    assert f"lora-train merge {folder}/checkpoint-30" in out


def test_what_is_no_run_is_said(tmp_path):
    with pytest.raises(UserError, match="holds neither a run nor folders of runs"):
        run(asked(tmp_path))
    with pytest.raises(UserError):
        run(asked(tmp_path / "none"))
