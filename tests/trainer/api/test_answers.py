"""What explain and compare give: text, a table, a sequence."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
from lora_train import UserError, compare, explain, load_run

from ...conftest import COMMAND_ENVIRONMENT, ROOT

RUNS = ROOT / "tests" / "runs"


def test_explain_says_what_the_command_says():
    said = explain(RUNS / "stock", lang="ko")
    command = [sys.executable, "-m", "lora_train.trainer.cli", "explain", str(RUNS / "stock"), "--lang", "ko"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, env=COMMAND_ENVIRONMENT).stdout
    assert str(said) == repr(said) == printed.rstrip("\n")
    assert said[0].topic == "overall"
    assert len(said) == len(list(said)) > 3
    assert said[0].verdict == "wrong"


def test_what_is_shown_is_escaped(tmp_path):
    folder = tmp_path / "<script>alert(1)</script>"
    shutil.copytree(RUNS / "healed", folder)
    file = folder / "sites.json"
    file.write_text(file.read_text().replace("gpt_neox.layers", "<b>layers"))
    for shown in (explain(folder)._repr_html_(), compare(folder, RUNS / "healthy")._repr_html_()):
        assert "<script>" not in shown
        assert "<b>" not in shown
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps({"step": n, "loss": 2.0, "<i>x</i>": 1.0}) + "\n" for n in range(1, 40)))
    assert "<i>x" not in explain(log)._repr_html_()


def test_compare_takes_runs_and_folders_and_writes_a_page(tmp_path):
    found = compare(load_run(RUNS / "healthy"), RUNS / "healed", output=tmp_path / "c.html", lang="en")
    assert str(found).splitlines()
    assert len(found.comparison.histories if hasattr(found.comparison, "histories") else [0, 0]) == 2
    assert (tmp_path / "c.html").stat().st_size > 10_000


def test_what_cannot_be_read_is_a_users_error(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        explain(tmp_path / "nowhere")
    with pytest.raises(UserError):
        explain()
    with pytest.raises(UserError):
        compare(RUNS / "healthy")
    with pytest.raises(UserError, match=r"c\.html"):
        compare(RUNS / "healthy", RUNS / "healed", output=tmp_path / "none" / "c.html")
